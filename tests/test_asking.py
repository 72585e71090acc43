"""A worker asks a chief again that died while it was being asked."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent import futures
from typing import Any

import grpc
import pytest

from kt_bttackler import asking
from kt_bttackler.asking import PatientStub

# Says that it was asked, and never answers.
SILENT = """
import sys, time
from concurrent import futures
import grpc

def ask(request, context):
    print("asked", flush=True)
    time.sleep(600)

handler = grpc.method_handlers_generic_handler(
    "s.S", {"Ask": grpc.unary_unary_rpc_method_handler(ask)}
)
server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((handler,))
server.add_insecure_port(sys.argv[1])
server.start()
print("ready", flush=True)
server.wait_for_termination()
"""


class Stub:
    """A stub with one question."""

    def __init__(self, address: str) -> None:
        self.Ask = grpc.insecure_channel(address).unary_unary("/s.S/Ask")


def answering(address: str) -> Any:
    def ask(request: bytes, context: Any) -> bytes:
        if request == b"bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")
        return b"answer to " + request

    handler = grpc.method_handlers_generic_handler(
        "s.S", {"Ask": grpc.unary_unary_rpc_method_handler(ask)}
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(address)
    server.start()
    return server


@pytest.fixture
def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("patient", [True, False])
def test_a_chief_that_dies_over_a_question_is_asked_again(
    address: str, patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_PAUSE", 0.01)
    command = [sys.executable, "-c", SILENT, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as chief:
        assert chief.stdout is not None
        assert chief.stdout.readline() == "ready\n"
        stub = PatientStub(Stub(address)) if patient else Stub(address)
        with futures.ThreadPoolExecutor(1) as worker:
            answer = worker.submit(stub.Ask, b"7", wait_for_ready=True, timeout=60)
            assert chief.stdout.readline() == "asked\n"
            chief.kill()
            chief.wait()
            server = answering(address)
            if patient:
                assert answer.result(60) == b"answer to 7"
            else:  # what KerasTuner does
                with pytest.raises(grpc.RpcError):
                    answer.result(60)
            server.stop(None).wait()


def test_errors_of_the_chief_are_not_asked_for_again(address: str) -> None:
    server = answering(address)
    with pytest.raises(grpc.RpcError) as raised:
        PatientStub(Stub(address)).Ask(b"bad", wait_for_ready=True, timeout=60)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    server.stop(None).wait()


def test_patience_ends(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_PAUSE", 0.0)
    monkeypatch.setattr(asking, "_ATTEMPTS", 2)
    with pytest.raises(grpc.RpcError) as raised:  # nobody is there
        PatientStub(Stub(address)).Ask(b"7", timeout=60)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE

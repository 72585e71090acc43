"""One search at a time writes in a project directory: who it is, and who may follow.

A lock is a small file that names a process. It appears whole or not at all, and is
taken over when its process is dead. A process that cannot be looked up, on another
machine or in another container, counts as dead when its lock was not renewed for
`EXPIRES` seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import pathlib
import socket
import threading
import time
import uuid

from kt_bttackler import files

NAME = "search.lock"
# Seconds after which a lock is renewed, and after which one that was not is stale.
RENEWED, EXPIRES = 30.0, 300.0


class ProjectInUse(RuntimeError):  # noqa: N818
    """Another process searches in the same directory."""


@dataclasses.dataclass(frozen=True)
class Process:
    """A process, told apart from every other one.

    Attributes:
        pid: its number.
        host: name of its machine.
        started: when it started, in clock ticks since the machine did; "" where the
            system does not tell.
        system: the start of the machine and the container within which `pid` is the
            number; "" where the system does not tell.
        since: Unix time at which it took the lock.
    """

    pid: int
    host: str
    started: str = ""
    system: str = ""
    since: float = dataclasses.field(default=0.0, compare=False)

    @classmethod
    def this(cls) -> Process:
        """The one that is running this."""
        pid = os.getpid()
        return cls(pid, socket.gethostname(), _started(pid), _system(), time.time())

    def is_running(self) -> bool | None:
        """Whether it still runs; `None` when that cannot be told from here."""
        if (self.host, self.system) != (socket.gethostname(), _system()):
            return None
        if os.name != "posix":  # elsewhere `kill` does not only ask
            return None
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
        return not self.started or _started(self.pid) == self.started

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} (since {since})"


class ProjectLock:
    """The lock of one project directory.

    Args:
        folder: the directory; it must exist.

    Example:
        >>> lock = ProjectLock(getfixture("tmp_path"))
        >>> lock.acquire()
        >>> lock.read() == Process.this(), lock.other() is None
        (True, True)
        >>> lock.release()
        >>> lock.read() is None
        True
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(folder) / NAME

    def read(self) -> Process | None:
        """Who is named in the lock, dead or alive; `None` when there is no lock.

        An unreadable lock names a process that cannot be told from here.
        """
        try:
            content = files.loads(files.read_text(self.path, 10_000))
            return Process(
                int(content["pid"]),
                str(content["host"]),
                str(content["started"]),
                str(content["system"]),
                float(content["since"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            return Process(0, "an unknown machine")

    def other(self) -> Process | None:
        """The other process that holds the lock; `None` when there is none."""
        holder = self.read()
        if holder is None or holder == Process.this() or self.is_stale(holder):
            return None
        return holder

    def is_stale(self, holder: Process) -> bool:
        """Whether the process named in the lock is dead."""
        running = holder.is_running()
        if running is not None:
            return not running
        try:
            renewed = self.path.stat().st_mtime
            return _now(self.path.parent) - renewed > EXPIRES
        except OSError:
            return False

    def acquire(self) -> None:
        """Takes the lock, also that of a dead process.

        Raises:
            ProjectInUse: another process holds it.
            OSError: the directory cannot be written.
        """
        own = Process.this()
        for _ in range(9):
            if self._create(own):
                _renew_in_background(self, own)
                atexit.register(self.release)
                return
            holder = self.read()
            if holder == own:
                return
            if holder is not None and not self.is_stale(holder):
                break
            if holder is not None:
                self._displace(holder)
        raise self._in_use(holder)

    def check(self) -> None:
        """Raises if another process holds the lock.

        Raises:
            ProjectInUse: it does.
        """
        holder = self.other()
        if holder is not None:
            raise self._in_use(holder)

    def release(self) -> None:
        """Gives the lock back; nothing happens unless this process holds it."""
        with contextlib.suppress(OSError):  # it is found to be stale later
            if self.read() == Process.this():
                self.path.unlink(missing_ok=True)
        atexit.unregister(self.release)

    def _in_use(self, holder: Process | None) -> ProjectInUse:
        return ProjectInUse(
            f"{self.path.parent} is in use by {holder}. Two searches in one directory "
            "would overwrite each other: wait for it, end it, or take another "
            f"`project_name`. If it does not run any more, delete {self.path}."
        )

    def _create(self, own: Process) -> bool:
        text = files.dumps(dataclasses.asdict(own))
        temporary = _beside(self.path)
        try:
            temporary.write_text(text, encoding="utf-8")
            try:
                os.link(temporary, self.path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                with open(self.path, "x", encoding="utf-8") as file:
                    file.write(text)
            return True
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)

    def _displace(self, stale: Process) -> None:
        """Removes a stale lock; of several that try, only one succeeds."""
        taken = _beside(self.path)
        try:
            self.path.rename(taken)
        except FileNotFoundError:
            return
        lock = ProjectLock(taken.parent)
        lock.path = taken
        if lock.read() != stale:  # in between another process has taken over
            with contextlib.suppress(OSError):
                os.link(taken, self.path)
        taken.unlink(missing_ok=True)


def _renew_in_background(lock: ProjectLock, own: Process) -> None:
    def renew() -> None:
        while True:
            time.sleep(RENEWED)
            if lock.read() != own:
                return
            try:
                os.utime(lock.path)
            except OSError:
                continue

    threading.Thread(target=renew, name=f"renews {lock.path}", daemon=True).start()


def _beside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _now(folder: pathlib.Path) -> float:
    """The time as the file system has it; that of a server may differ from ours."""
    probe = _beside(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _started(pid: int) -> str:
    """When a process started; "" where the system does not tell, or it is no more."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    # After the name in brackets: the state, and 18 numbers before the start.
    state, *numbers = stat.rpartition(")")[2].split()
    return "dead" if state in "ZX" else numbers[18]


def _system() -> str:
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""

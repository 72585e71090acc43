import lzma
import tracemalloc

import pytest
import specimens

from kt_bttackler import files, shards
from kt_bttackler.trace import TraceStore, TraceWriter, read_shard


def write(path, trace, end="finished"):
    writer = TraceWriter(path, trace.header)
    for record in trace.records:
        writer.append(record)
    if end:
        writer.close(end)
    return path


def loose(folder, count, first=0):
    """Traces that differ, one per file."""
    return [
        write(
            folder / f"trace-{number:04d}.jsonl",
            specimens.trace([2.0 + number, 1.0], trial_id=str(number)),
        )
        for number in range(first, first + count)
    ]


def facts(store):
    return [
        files.dumps(
            [
                trace.header.trial_id,
                trace.end,
                trace.seconds.tolist(),
                trace.scalar("loss").tolist(),
                [dict(record.columns) for record in trace.records],
            ]
        )
        for trace in store
    ]


def test_a_store_reads_the_same_from_a_shard_as_from_files(tmp_path):
    paths = loose(tmp_path / "files", 5)
    shards.write_shard(tmp_path / "shards" / "shard-000.jsonl.xz", paths[:3])
    loose(tmp_path / "shards", 2, first=3)
    packed = TraceStore(tmp_path / "shards")
    assert facts(packed) == facts(TraceStore(tmp_path / "files"))
    assert facts(packed) == facts(packed)  # also from memory
    assert packed.trial("1").header.trial_id == "1"
    assert packed.trial("4").header.trial_id == "4"
    assert not next(iter(TraceStore(tmp_path, columns=False))).records[0].columns


def test_equal_trainings_give_equal_bytes(tmp_path):
    paths = loose(tmp_path, 3)
    for name in ("a.xz", "b.xz"):
        shards.write_shard(tmp_path / name, paths)
    assert (tmp_path / "a.xz").read_bytes() == (tmp_path / "b.xz").read_bytes()


def test_a_shard_is_read_lazily(tmp_path):
    path = tmp_path / "shard-000.jsonl.xz"
    shards.write_shard(path, loose(tmp_path / "files", 3))
    whole = path.read_bytes()
    # Its end is damaged: what comes before can be read all the same.
    text = lzma.decompress(whole)
    cut = text[: text.rindex(b'{"schema"') + 20]
    path.write_bytes(lzma.compress(cut))
    reader = read_shard(path)
    assert [next(reader).header.trial_id for _ in range(2)] == ["0", "1"]
    with pytest.raises(ValueError, match="ends within a line"):
        next(reader)
    assert len(list(TraceStore(tmp_path))) == 3 + 2  # the files, and what is whole


def test_what_is_no_shard_is_refused(tmp_path):
    path = tmp_path / "shard-000.jsonl.xz"
    shards.write_shard(path, loose(tmp_path / "files", 3))
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04 something else", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="shard-000"):
            list(read_shard(path))
        assert not list(TraceStore(tmp_path).folder.glob("no"))
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="shard-000"):
        list(read_shard(path))


@pytest.mark.parametrize("line", [b"x", b"x" * 1023 + b"\n"])
def test_a_bomb_is_refused_in_little_memory(tmp_path, line, monkeypatch):
    monkeypatch.setattr(shards, "MOST_BYTES", 2**26)
    path = tmp_path / "shard-000.jsonl.xz"
    path.write_bytes(lzma.compress(line * (2**27 // len(line)), preset=0))
    assert path.stat().st_size < 2**16
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than a shard can hold"):
            for _ in shards.shard_lines(path, longest=2**20):
                pass
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_a_huge_dictionary_is_refused(tmp_path):
    path = tmp_path / "shard-000.jsonl.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 2**29}]
    path.write_bytes(lzma.compress(b"{}\n", filters=filters))
    with pytest.raises(ValueError, match="no shard"):
        list(shards.shard_lines(path, longest=2**20))


def test_a_shard_appears_as_a_whole(tmp_path):
    paths = loose(tmp_path / "files", 2)
    with pytest.raises(OSError, match="missing"):
        shards.write_shard(
            tmp_path / "shard-000.jsonl.xz", [*paths, tmp_path / "missing"]
        )
    assert [path.name for path in tmp_path.iterdir()] == ["files"]

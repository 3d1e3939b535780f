"""The archive: what version 1 stored is read as it was then, and no damage goes unnoticed."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import InputError
from edge.message import Block, Clock, Counters, Coverage, Eviction, Quality, Record, pack, unpack
from fleet.archive import Archive
from fleet.messages import Place, Received

GOLDEN = Path(__file__).parent / "golden"


def received() -> list[Received]:
    """Two messages: three records, one of them twice, one that is no block, and an eviction."""

    def block(n: int) -> bytes:
        clock = Clock(bytes(range(16)), 1_795_500_000_000_000 + n, Quality.SYNCHRONISED)
        counters = Counters(10 * n, 1, 2, 3, 4, 5, 6)
        return Block(bytes([n]) * n, clock, Coverage("socketcan:can0", 100 * n, 100 * n + 50, n), counters).encode()

    first = [Record(n, 5, "drive", block(n)) for n in (1, 2)]
    second = [first[1], Record(3, 1, "brake", block(3)), Record(4, 5, "drive", b"\xff")]
    eviction = Eviction(5, 9, 4, "drive", "quota", 1_795_500_000_000_000)
    bodies = [pack("truck-7", bytes(16), bytes(32), first), pack("truck-7", bytes(16), bytes(32), second, [eviction])]
    return [Received(Place(Path("07.json"), n), "truck-7", n, body, unpack(body)) for n, body in enumerate(bodies)]


def test_a_segment_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "_received").mkdir()
    path = tmp_path / "_received/000001.segment"
    path.write_bytes((GOLDEN / "archive-1.segment").read_bytes())
    archive = Archive(tmp_path)
    assert json.loads(msgspec.json.encode(archive.indexes)) == json.loads((GOLDEN / "archive-1.json").read_bytes())
    assert [data for _, data in archive.bodies(archive.records())] == [b"\1", b"\2\2", b"\3\3\3"]
    assert archive.add(received()) == 0
    assert len(list(path.parent.iterdir())) == 1


def test_what_is_written_is_version_1(tmp_path: Path) -> None:
    assert Archive(tmp_path).add(received()) == 3
    assert (tmp_path / "_received/000001.segment").read_bytes() == (GOLDEN / "archive-1.segment").read_bytes()


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_segment_that_is_cut_or_flipped_is_refused_unless_only_blocks_are_hit(
    tmp_path_factory: Any, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("segment")
    (folder / "_received").mkdir()
    content = bytearray((GOLDEN / "archive-1.segment").read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    (folder / "_received/000001.segment").write_bytes(content)
    harmless = at < 6 or len(content) - 8 <= at < len(content) - 4  # blocks have checksums of their own; reserved
    if harmless and len(content) > at:
        assert len(Archive(folder).records()) == 3
    else:
        with pytest.raises(InputError, match=r"000001\.segment: (is|does)"):
            Archive(folder)


def test_a_segment_that_is_missing_is_named(tmp_path: Path) -> None:
    messages = received()
    archive = Archive(tmp_path)
    archive.add(messages[:1])
    archive.add(messages[1:])
    (tmp_path / "_received/000001.segment").unlink()
    with pytest.raises(InputError, match=r"000001\.segment: is missing"):
        Archive(tmp_path)

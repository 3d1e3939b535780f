"""Recordings that are written read again as the frames they were made from."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cy_core.frames import Frames
from edge.errors import InputError
from edge.log_writer import EXTENDED, REMOTE, open_log_writer
from edge.logs import open_log

BUSES = ("can0", "can1", "can2")
FD_LENGTHS = (*range(9), 12, 16, 20, 24, 32, 48, 64)
START_US = 1_795_471_200_000_000
Row = tuple[int, int, int, int, bytes]

bus, ids = st.integers(0, 2), st.integers(0, 0x7FF) | st.integers(0, 0x1FFFFFFF).map(lambda n: n | EXTENDED)
classic = st.tuples(st.integers(0, 10**7), bus, ids, st.just(0), st.binary(max_size=8))
remote = st.tuples(st.integers(0, 10**7), bus, ids.map(lambda n: n | REMOTE), st.just(0), st.just(b""))
fd = st.tuples(
    st.integers(0, 10**7),
    bus,
    ids,
    st.integers(4, 7),
    st.sampled_from(FD_LENGTHS).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
)


def frames_of(rows: list[Row]) -> Frames:
    frames, time_us = Frames(), START_US
    for wait, number, can_id, flags, data in rows:
        time_us += wait
        frames.append(time_us, number, can_id, data, flags=flags)
    return frames


def read(path: Path) -> list[tuple[int, str, int, int, bytes]]:
    reader, frames = open_log(path), Frames()
    while reader.read(frames, 1000):
        pass
    names = reader.buses
    reader.close()
    assert reader.problems() == []
    return [(time_us, names[number], *rest) for time_us, number, *rest in frames]


@pytest.mark.parametrize("suffix", [".log", ".log.gz", ".log.zst", ".blf", ".mf4"])
@settings(max_examples=15, deadline=None)
@example(rows=[(0, 0, 1, 0, b"\1"), (0, 0, 1 | REMOTE, 0, b""), (0, 0, 1, 0, b"\2")])
@given(rows=st.lists(classic | remote | fd, min_size=1, max_size=40))
def test_frames_come_back_as_they_were(suffix: str, rows: list[Row]) -> None:
    frames = frames_of(rows)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"out{suffix}"
        with open_log_writer(path) as writer:
            half = len(frames) // 2
            writer.write(frames.slice(0, half), BUSES)
            writer.write(frames.slice(half, len(frames)), BUSES)
        expected = [(time_us, BUSES[number], *rest) for time_us, number, *rest in frames]
        if suffix == ".mf4":  # kinds apart within a microsecond
            expected.sort(key=lambda row: (row[0], row[2] & REMOTE))
        assert read(path) == expected
        assert [left.name for left in Path(folder).iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("out.asc", "is no kind of recording by its suffix"),
        ("missing/out.log", "cannot be written"),
        ("missing/out.blf", "cannot"),
    ],
)
def test_what_cannot_be_written_is_one_clear_line(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem), open_log_writer(tmp_path / name) as writer:
        writer.write(frames_of([(0, 0, 1, 0, b"")]), BUSES)
    assert list(tmp_path.iterdir()) == []

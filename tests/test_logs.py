"""Recordings: every frame of them, bad lines by number, cut files up to the cut."""

import gzip
import os
from pathlib import Path

import can
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.candump import CandumpReader
from cy_core.frames import Frames
from edge.errors import InputError
from edge.logs import open_log
from simulator.demo import ROOT

FORMATS = Path(os.environ.get("BORDNETZ_DATA", ROOT.parent / "shared" / "data")) / "log_formats"
EXTENDED, REMOTE, ERROR = 0x80000000, 0x40000000, 0x20000000

Frame = tuple[int, int, int, int, bytes]


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    is_fd = draw(st.booleans())
    can_id = draw(st.integers(0, 0x7FF) | st.integers(0, 0x1FFFFFFF).map(lambda number: number | EXTENDED))
    flags = draw(st.integers(0, 3)) | 4 if is_fd else 0
    payload = draw(st.binary(max_size=64 if is_fd else 8))
    return draw(st.integers(0, 1 << 45)), draw(st.integers(0, 2)), can_id, flags, payload


def line_of(frame: Frame) -> str:
    time_us, bus, can_id, flags, payload = frame
    name = f"{can_id & 0x1FFFFFFF:08X}" if can_id & EXTENDED else f"{can_id:03X}"
    mark = f"##{flags & 3:X}" if flags else "#"
    return f"({time_us // 1_000_000}.{time_us % 1_000_000:06}) can{bus} {name}{mark}{payload.hex().upper()}"


@given(st.lists(frames(), max_size=40), st.data())
@settings(deadline=None)
def test_whatever_way_the_text_is_cut_into_pieces_the_same_frames_come_out(
    wanted: list[Frame], data: st.DataObject
) -> None:
    text = "".join(f"{line_of(frame)}\n" for frame in wanted).encode()
    reader, found, left = CandumpReader(["can0", "can1", "can2"]), Frames(), b""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        left += text[start:end]
        limit = data.draw(st.integers(0, 5) | st.just(-1))
        left = left[reader.parse(left, found, limit) :]
    reader.parse(left, found, final=True)
    assert list(found) == wanted
    assert (reader.bad_lines, reader.lines) == (0, len(wanted))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_bad_lines_and_nothing_else(text: bytes) -> None:
    reader, found = CandumpReader(), Frames()
    reader.parse(text, found, final=True)
    assert len(found) + reader.bad_lines <= reader.lines <= text.count(b"\n") + 1


@pytest.mark.parametrize(
    ("line", "frame"),
    [
        ("(1.5) can0 123#", (1_500_000, 0, 0x123, 0, b"")),
        ("(1.123456789) can0 123#01", (1_123_456, 0, 0x123, 0, b"\x01")),
        ("(1.000001) can0 00000123#01", (1_000_001, 0, 0x123 | EXTENDED, 0, b"\x01")),
        ("(1.000001) can0 123#R", (1_000_001, 0, 0x123 | REMOTE, 0, b"")),
        ("(1.000001) can0 123#R8", (1_000_001, 0, 0x123 | REMOTE, 0, b"")),
        ("(1.000001) can0 20000088#0000000000000000", (1_000_001, 0, 0x88 | ERROR, 0, bytes(8))),
        ("(1.000001) can0 123##311", (1_000_001, 0, 0x123, 7, b"\x11")),
        ("(1.000001) can0 123#0102 T\r", (1_000_001, 0, 0x123, 0, b"\x01\x02")),
        ("(1.000001) can0 123#01.02", (1_000_001, 0, 0x123, 0, b"\x01\x02")),
    ],
)
def test_every_form_of_a_candump_line_is_read(line: str, frame: Frame) -> None:
    reader, found = CandumpReader(["can0"]), Frames()
    reader.parse(line.encode(), found, final=True)
    assert list(found) == [frame]


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "(1.0) can0",
        "(1.0) can0 123",
        "(1.0) can0 #00",
        "(1.0) can0 FFF#00",
        "(1.0) can0 123#0",
        "1.0 can0 123#00",
        "(1.0) can0 123#000102030405060708",
        "(1.0) can0 123##",
        "(1.0)  123#00",
        "(a.0) can0 123#00",
        "(1.0) can0 123#0g",
    ],
)
def test_a_line_that_is_no_frame_is_counted_and_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(f"(1.0) can0 123#00\n\n{line}\n(2.0) can0 123#01\n")
    log, found = open_log(path), Frames()
    assert not log.read(found, 10)
    assert [frame[4] for frame in found] == [b"\x00", b"\x01"]
    assert log.bad_lines == 1
    assert log.problems() == [f"line 3: no frame in {line!r}; left out"]


def test_a_limit_is_kept_and_reading_goes_on_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"({n}.0) can0 123#{n % 256:02X}\n" for n in range(50_000)))
    log, found = open_log(path), Frames()
    assert log.read(found, 7)
    assert len(found) == 7
    while log.read(found, 1000):
        pass
    assert [frame[0] for frame in found] == [n * 1_000_000 for n in range(50_000)]


def test_skipped_frames_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"({n}.0) can0 123#00\n# no frame\n" for n in range(10)))
    log, found = open_log(path), Frames()
    log.skip(4)
    log.read(found, 100)
    assert [frame[0] for frame in found] == [n * 1_000_000 for n in range(4, 10)]


@pytest.mark.parametrize("suffix", [".log.gz", ".log.zst"])
def test_a_compressed_log_that_is_cut_gives_all_before_the_cut_and_says_so(suffix: str, tmp_path: Path) -> None:
    text = "".join(f"({n}.0) can0 {n % 2048:03X}#{n * 7919 % 2**32:08X}\n" for n in range(30_000)).encode()
    compress = gzip.compress if suffix == ".log.gz" else zstandard.compress
    packed = compress(text[:200_000]) + compress(text[200_000:])  # as a logger does that was stopped in between
    path = tmp_path / f"a{suffix}"
    for content, is_cut in ((packed, False), (packed[: len(packed) * 2 // 3], True)):
        path.write_bytes(content)
        log, found = open_log(path), Frames()
        while log.read(found, 10_000):
            pass
        times = [frame[0] for frame in found]
        assert times == [n * 1_000_000 for n in range(len(times))]
        assert (len(times) < 30_000) is is_cut
        assert len(times) > 5_000
        assert bool(log.problem) is is_cut


def test_a_file_that_is_no_log_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"\x00" * 2_000_000)
    with pytest.raises(InputError, match="line 1 is over"):
        open_log(tmp_path / "a.log").read(Frames(), 10)
    with pytest.raises(InputError, match="no such file"):
        open_log(tmp_path / "none.log")
    with pytest.raises(InputError, match="is not a file"):
        open_log(tmp_path)
    (tmp_path / "a.xyz").touch()
    with pytest.raises(InputError, match="form of log is not known"):
        open_log(tmp_path / "a.xyz")


def test_logs_of_other_tools_give_the_same_frames(tmp_path: Path) -> None:
    wanted = [(1_000_000 + 500 * n, 0, 0x100 + n, 0, bytes([n, 255 - n])) for n in range(20)]
    for suffix in (".asc", ".blf", ".trc", ".csv", ".mf4")[:4]:
        path = tmp_path / f"a{suffix}"
        with can.Logger(path) as logger:
            for time_us, _, can_id, _, payload in wanted:
                message = can.Message(
                    timestamp=time_us / 1e6, arbitration_id=can_id, is_extended_id=False, data=payload, channel=0
                )
                logger.on_message_received(message)
        log, found = open_log(path), Frames()
        assert not log.read(found, 100), suffix
        start = next(iter(found))[0] - wanted[0][0]  # some of these forms count from the first frame
        assert [(t - start, can_id, data) for t, _, can_id, _, data in found] == [
            (t, can_id, data) for t, _, can_id, _, data in wanted
        ], suffix


@pytest.mark.skipif(not FORMATS.is_dir(), reason=f"no recordings at {FORMATS}: set BORDNETZ_DATA")
@pytest.mark.parametrize(
    "name", ["classic.asc", "classic.blf", "classic.csv", "classic.trc", "fd.asc", "fd.blf", "j1939.blf"]
)
def test_recorded_logs_of_other_forms_hold_the_frames_of_their_candump_twin(name: str) -> None:
    path = FORMATS / name
    truth, found = Frames(), Frames()
    open_log(path.with_suffix(".log")).read(truth, 10_000)
    open_log(path).read(found, 10_000)
    assert [frame[2:] for frame in found] == [frame[2:] for frame in truth]

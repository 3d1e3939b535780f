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
from cy_core.text_logs import BusmasterReader, CrtdReader, CsvReader, GvretReader, MicrochipReader
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


RECORDED = sorted(
    path for path in FORMATS.glob("*") if path.stem in ("classic", "fd", "j1939") and path.suffix != ".log"
)
CAPTURES = sorted(FORMATS.glob("savvycan-*.gz"))
without_recordings = pytest.mark.skipif(not RECORDED, reason=f"no recordings at {FORMATS}: set BORDNETZ_DATA")


def frames_of(path: Path) -> list[Frame]:
    log, found = open_log(path), Frames()
    while log.read(found, 10_000):
        pass
    assert log.problems() == []
    log.close()
    return list(found)


@without_recordings
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_recorded_logs_of_other_forms_hold_the_frames_of_their_candump_twin(path: Path) -> None:
    truth, found = frames_of(path.with_suffix(".log")), frames_of(path)
    assert [frame[2:] for frame in found] == [frame[2:] for frame in truth]
    assert len({one[0] - other[0] for one, other in zip(found, truth, strict=True)}) == 1
    # Bus numbers are those of the tool that wrote it; csv has none.
    if path.suffix != ".csv":
        assert len({(one[1], other[1]) for one, other in zip(found, truth, strict=True)}) == len({f[1] for f in truth})


@without_recordings
@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("canedge-tractor.MF4", "j1939_truck_idle/tractor.log.gz"),
        ("canedge-hyundai-ev.MF4", "uds_isotp_ev/hyundai-ev.log.gz"),
    ],
)
def test_the_unsorted_mf4_of_a_logger_holds_the_frames_of_its_candump_twin(name: str, twin: str) -> None:
    found, truth = frames_of(FORMATS / name), frames_of(FORMATS.parent / twin)
    # Two channels may have a frame in the same microsecond: then either may come first.
    assert sorted((f[0], *f[2:]) for f in found) == sorted((f[0], *f[2:]) for f in truth)


@without_recordings
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_one_capture_in_the_forms_of_five_tools_is_one_list_of_frames(path: Path) -> None:
    found, truth = frames_of(path), frames_of(FORMATS / "savvycan-candump.log.gz")
    assert len(found) == 12_974
    assert [frame[2:] for frame in found] == [frame[2:] for frame in truth]
    start = found[0][0] - truth[0][0]
    assert all(abs(one[0] - other[0] - start) < 1_000_000 for one, other in zip(found, truth, strict=True))


FORM_LINES = [
    ("timestamp,arbitration_id,extended,remote,error,dlc,data", "1.5,0x123,0,0,0,2,AQI=", (0x123, b"\x01\x02")),
    ("timestamp,arbitration_id,extended,remote,error,dlc,data", "1.5,0x123,1,1,0,2,", (0xC0000123, b"")),
    ("Time Stamp,ID,Extended,Bus,LEN,D1", "1500000,00000123,true,0,2,01,02,", (0x80000123, b"\x01\x02")),
    ("Time Stamp,ID,Extended,Dir,Bus,LEN,D1", "1500000,00000123,false,Rx,0,1,01,", (0x123, b"\x01")),
    ("1.000000 CXX a remark", "1.500000 R29 00000123 01 02", (0x80000123, b"\x01\x02")),
    ("1.000000 CXX a remark", "1.500000 0T11 123 ", (0x123, b"")),
    ("***BUSMASTER Ver 2.4.0***", "00:00:01:5000 Rx 0 0x123 x 2 01 02", (0x80000123, b"\x01\x02")),
    ("***BUSMASTER Ver 2.4.0***", "00:00:01:500 Tx 0 123 sr 0", (0x40000123, b"")),
    ("//-----\nMicrochip Technology Inc.\n\n\n\n//----", "1500;RX;0x00000123;1;0x01;", (0x123, b"\x01")),
]


@pytest.mark.parametrize(("title", "line", "frame"), FORM_LINES)
def test_a_form_is_told_by_how_it_begins_and_its_bad_lines_are_named(
    title: str, line: str, frame: tuple[int, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"{title}\n{line}\n1.5 what is this\n{line}\n")
    log, found = open_log(path), Frames()
    assert not log.read(found, 10)
    assert [(f[0], f[2], f[4]) for f in found] == 2 * [(1_500_000, *frame)]
    assert log.buses == ("can0",)
    assert log.problems() == [f"line {len(title.splitlines()) + 2}: no frame in '1.5 what is this'; left out"]


READERS = [CandumpReader, CsvReader, GvretReader, CrtdReader, BusmasterReader, MicrochipReader]


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_no_text_is_read_beyond_its_end_or_as_more_frames_than_lines(data: st.DataObject) -> None:
    reader = data.draw(st.sampled_from(READERS))()
    good = data.draw(st.sampled_from([line for _, line, _ in FORM_LINES])).encode()
    cut, junk = data.draw(st.integers(0, len(good))), data.draw(st.binary(max_size=40))
    text, found = good[:cut] + junk + good[data.draw(st.integers(cut, len(good))) :], Frames()
    reader.parse(text, found, final=True)
    assert len(found) + reader.bad_lines <= reader.lines
    for _, bus, can_id, _, payload in found:
        assert bus < len(reader.buses)
        assert len(payload) <= 64
        assert can_id & 0x1FFFFFFF <= (0x1FFFFFFF if can_id & EXTENDED else 0x7FF)

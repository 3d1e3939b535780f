"""What is no message of ours, or cannot be: set aside with a reason, counted, never in the table, and never the end."""

import base64
import errno
import json
import os
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import InputError
from edge.message import Block, Counters, Coverage
from fleet import files, lines, table
from fleet.decode import decode, load_manifests
from fleet.messages import Place, Received
from tests.fleet_messages import (
    MANIFEST,
    SECOND_US,
    VEHICLE,
    block_of,
    decoded,
    message_of,
    put,
    record_of,
    rows_in,
    rows_of,
)


def test_what_is_no_message_of_ours_is_named_with_its_line_and_the_rest_is_read(tmp_path: Path) -> None:
    good = message_of([record_of(1, block_of(0, 3))])
    spoofed = message_of([record_of(2, block_of(3, 6))], connectionDeviceId="another")
    other = message_of([], contentType="application/json")
    broken = json.dumps({**json.loads(good), "Body": base64.b64encode(b"\xff\xff").decode()}).encode() + b"\n"
    rows, audit = decoded(tmp_path, [b"not JSON\n", b"[]\n", good, spoofed, other], [broken, good[: len(good) // 2]])
    assert rows == rows_of(range(3))
    assert audit.other_messages == 1
    assert not audit.ok
    places = [problem.partition("/15/")[2].partition(" ")[0] for problem in audit.problems]
    assert places == ["00.json:1:", "00.json:2:", "00.json:4:", "01.json:1:", "01.json:2:"]
    assert "a message of 'truck-7' that 'another' sent" in audit.problems[2]


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_line_stops_the_reading(tmp_path_factory: Any, line: bytes) -> None:
    folder = tmp_path_factory.mktemp("lines")
    body = base64.b64encode(line).decode()
    system = {"connectionDeviceId": VEHICLE}
    wrapped = json.dumps({"EnqueuedTimeUtc": "2026-11-24T15:00:00Z", "SystemProperties": system, "Body": body})
    rows, _ = decoded(folder, [line + b"\n", wrapped.encode() + b"\n", message_of([record_of(1, block_of(0, 3))])])
    assert rows == rows_of(range(3))


def test_a_block_that_does_not_decode_is_named_and_the_rest_is_decoded(tmp_path: Path) -> None:
    damaged = block_of(3, 6)
    flipped = Block(damaged.data[:-1] + b"?", damaged.clock, damaged.coverage, damaged.counters)
    backwards = Block(damaged.data, damaged.clock, Coverage("replay:drive.log", 9, 6), damaged.counters)
    records = [
        record_of(1, block_of(0, 3)),
        record_of(2, flipped),
        record_of(3, backwards),
        record_of(4, block_of(6, 9)),
    ]
    rows, audit = decoded(tmp_path, [message_of(records)])
    assert rows == rows_of([*range(3), *range(6, 9)])
    assert audit.problems == [
        "truck-7, outbox 00010203: record 3 of drive: it covers frames 9 to 6; left out",
        "truck-7, outbox 00010203: record 2 of drive: the block does not match its checksum; left out",
    ]
    assert [stream.undecoded_blocks for stream in audit.streams] == [1]
    assert not audit.ok


def test_a_damaged_manifest_file_is_refused(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path / "a.manifest")
    content = (tmp_path / "a.manifest").read_bytes()
    (tmp_path / "a.manifest").write_bytes(content.replace(b"SPEED", b"SPEEE"))
    with pytest.raises(InputError, match="hash does not match"):
        load_manifests(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        load_manifests(tmp_path / "missing")


@pytest.mark.parametrize("vehicle", ["../../etc", "a/b", "a\\b", "..", ".", "a\nb"])
def test_a_vehicle_that_is_called_like_a_path_is_not_let_in(tmp_path: Path, vehicle: str) -> None:
    bad, good = (message_of([record_of(1, block_of(0, 2))], vehicle=name) for name in (vehicle, VEHICLE))
    rows, audit = decoded(tmp_path, [bad, good])
    assert rows == rows_of(range(2))
    assert f"00.json:1: no device is called {vehicle!r}: that is a path; left out" in audit.problems[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["messages", "table"]


def test_what_cannot_be_counted_or_named_is_left_out(tmp_path: Path) -> None:
    good, most = block_of(0, 3), (1 << 64) - 1
    bad = [
        record_of(2, Block(good.data, good.clock, Coverage("x", 0, most), good.counters)),
        record_of(3, Block(good.data, good.clock, good.coverage, Counters(samples=most))),
        record_of(most, good),
        record_of(4, good, stream="ü" * 200),
        record_of(5, good, stream=""),
    ]
    long = message_of([record_of(1, good)], vehicle="ü" * 128)
    rows, audit = decoded(tmp_path, [message_of([record_of(1, good), *bad]), message_of(bad), long])
    assert rows == rows_of(range(3))
    assert len(audit.problems) == 6
    assert "the device's name of 128 characters is too long for a folder" in audit.problems[0]
    assert f"record 2 of drive: it counts to {most}; left out" in audit.problems[1]


def test_a_file_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    put(tmp_path, [message_of([record_of(1, block_of(0, 3))])])
    (tmp_path / "messages" / os.fsdecode(b"\xff.json")).write_bytes(b"?\n")
    audit = decode([tmp_path / "messages"], {MANIFEST.hash: MANIFEST}, tmp_path / "table")
    assert "messages/\N{REPLACEMENT CHARACTER}.json:1: no message in IoT Hub's JSON form" in audit.problems[0]


def test_a_file_that_is_no_file_of_messages_is_named(tmp_path: Path) -> None:
    put(tmp_path, [message_of([record_of(1, block_of(0, 3))])])
    (tmp_path / "messages/photo.jpg").write_bytes(b"\xff\xd8")
    audit = decode([tmp_path / "messages"], {MANIFEST.hash: MANIFEST}, tmp_path / "table")
    assert "photo.jpg: is no file of messages by its name (.json or .avro); left out" in audit.problems[0]
    (tmp_path / "messages/photo.jpg").unlink()
    torn = message_of([record_of(2, block_of(3, 6))])
    path = tmp_path / "messages/late.json"
    path.write_bytes(torn[:99])
    assert len(decode([tmp_path / "messages"], None, tmp_path / "table").problems) == 2
    path.write_bytes(torn)  # a hub had been writing it
    assert len(decode([tmp_path / "messages"], None, tmp_path / "table").problems) == 1


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    messages = put(tmp_path, [])
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    with pytest.raises(InputError, match="home: is there already, and is no table of ours"):
        decode([messages], {}, tmp_path / "home")
    assert (tmp_path / "home/letter.txt").exists()
    with pytest.raises(InputError, match="nowhere: is no folder of messages"):
        decode([tmp_path / "nowhere"], {}, tmp_path / "table")
    with pytest.raises(InputError, match="holds no table"):
        table.read(tmp_path / "home")


def test_a_block_of_a_newer_version_is_named_and_the_rest_is_decoded(tmp_path: Path) -> None:
    good = block_of(0, 3)
    newer = Block(good.data[:2] + b"\x03" + good.data[3:], good.clock, good.coverage, good.counters)
    rows, audit = decoded(tmp_path, [message_of([record_of(1, good), record_of(2, newer)])])
    assert rows == rows_of(range(3))
    assert "record 2 of drive: not a block of a known format: starts with 424e0302; left out" in audit.problems[0]


def test_a_block_of_more_samples_than_memory_holds_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant column of a million rows takes a few bytes of a message."""
    monkeypatch.setattr(lines, "MOST_SAMPLES", 15)
    rows, audit = decoded(tmp_path, [message_of([record_of(1, block_of(0, 6)), record_of(2, block_of(6, 13))])])
    assert rows == rows_of(range(6))
    assert "record 2 of drive: it holds 18 samples, more than the 15 that are allowed; left out" in audit.problems[0]


@pytest.mark.parametrize("codec", ["bzip2", "xz", "deflate"])
def test_damage_in_a_compressed_avro_file_is_a_finding(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "messages/07.avro"
    path.parent.mkdir()
    with path.open("wb") as file:
        fastavro.writer(file, {"type": "record", "name": "Cat", "fields": []}, [{}] * 99, codec=codec)
    content = bytearray(path.read_bytes())
    content[-40:-20] = bytes(20)
    path.write_bytes(content)
    good = put(tmp_path, [message_of([record_of(1, block_of(0, 3))])])
    audit = decode([good], {MANIFEST.hash: MANIFEST}, tmp_path / "table")
    assert "07.avro: is no whole Avro file, read up to record 0" in audit.problems[0]
    assert rows_in(table.read(tmp_path / "table")) == rows_of(range(3))


def test_a_file_that_may_not_be_read_or_is_gone_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gone.json: cannot be read (No such file" in str(next(files.read(tmp_path / "gone.json")))

    def refuse(path: Path, mode: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "x.avro: cannot be read (Permission denied)" in str(next(files.read(tmp_path / "x.avro")))


def test_a_table_below_the_folder_of_messages_is_not_read_as_messages(tmp_path: Path) -> None:
    put(tmp_path, [message_of([record_of(1, block_of(0, 3))])])
    for _ in range(2):
        audit = decode([tmp_path], {MANIFEST.hash: MANIFEST}, tmp_path / "table")
        assert audit.ok, str(audit)


def test_what_is_damaged_of_the_tables_own_files_is_named(tmp_path: Path) -> None:
    decoded(tmp_path, [message_of([record_of(1, block_of(0, 3))])])
    (tmp_path / "table/_findings.json").write_text("[")
    with pytest.raises(InputError, match=r"_findings\.json: is damaged"):
        decoded(tmp_path)


def test_a_time_that_names_its_zone_is_taken_at_its_word() -> None:
    line = message_of([record_of(1, block_of(0, 3))], enqueued="2026-11-24T17:00:00+02:00")
    found = files.parse_line(Place(Path("x"), 1), line)
    assert isinstance(found, Received)
    assert found.enqueued_us == 1_795_532_400 * SECOND_US

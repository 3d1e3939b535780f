"""Files as IoT Hub's routing and Event Hubs capture write them, in their documented Avro forms."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet import avro, files, messages
from fleet.decode import decode
from fleet.generate import write
from fleet.table import read

# As in the header of the files that the services write.
ROUTING = {
    "type": "record",
    "name": "Message",
    "namespace": "Microsoft.Azure.Devices",
    "fields": [
        {"name": "EnqueuedTimeUtc", "type": "string"},
        {"name": "Properties", "type": {"type": "map", "values": "string"}},
        {"name": "SystemProperties", "type": {"type": "map", "values": "string"}},
        {"name": "Body", "type": ["null", "bytes"]},
    ],
}
ANYTHING = {"type": "map", "values": ["long", "double", "string", "bytes"]}
CAPTURE = {
    "type": "record",
    "name": "EventData",
    "namespace": "Microsoft.ServiceBus.Messaging",
    "fields": [
        {"name": "SequenceNumber", "type": "long"},
        {"name": "Offset", "type": "string"},
        {"name": "EnqueuedTimeUtc", "type": "string"},
        {"name": "SystemProperties", "type": ANYTHING},
        {"name": "Properties", "type": {**ANYTHING, "values": [*ANYTHING["values"], "null"]}},
        {"name": "Body", "type": ["null", "bytes"]},
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("fleet") / "made"
    write(folder, vehicles=2, hours=0.4, seed=3)
    return folder


def received(folder: Path) -> list[messages.Received]:
    found = [message for path in files.files([folder]) for message in files.read(path)]
    assert all(isinstance(message, messages.Received) for message in found)
    return found  # type: ignore[return-value]


def routed(message: messages.Received, **system: str) -> dict[str, Any]:
    when = datetime.fromtimestamp(message.enqueued_us / 1e6, UTC)
    return {
        "EnqueuedTimeUtc": when.strftime("%Y-%m-%dT%H:%M:%S.%f0Z"),
        "Properties": {"colour": "red"},
        "SystemProperties": {
            "connectionDeviceId": message.vehicle,
            "connectionModuleId": "uplink",
            "connectionAuthMethod": '{"scope":"module"}',
            "contentType": "application/x-protobuf",
            "enqueuedTime": when.isoformat(),
            **system,
        },
        "Body": message.body,
    }


def captured(number: int, message: messages.Received) -> dict[str, Any]:
    when = datetime.fromtimestamp(message.enqueued_us // 1_000_000, UTC)
    return {
        "SequenceNumber": number,
        "Offset": str(1000 * number),
        "EnqueuedTimeUtc": f"{when.month}/{when.day}/{when.year} {when.strftime('%I:%M:%S %p').lstrip('0')}",
        "SystemProperties": {
            "iothub-connection-device-id": message.vehicle,
            "iothub-connection-module-id": b"uplink",
            "iothub-enqueuedtime": message.enqueued_us // 1000,
            "content-type": "application/x-protobuf",
            "x-opt-sequence-number": number,
        },
        "Properties": {"colour": None, "weight": 1.5},
        "Body": message.body,
    }


def store(path: Path, schema: dict[str, Any], rows: list[dict[str, Any]], codec: str = "deflate") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fastavro.writer(file, schema, rows, codec=codec, sync_interval=4000)
    return path


def test_the_same_messages_in_every_form_make_the_same_table(made: Path, tmp_path: Path) -> None:
    found = received(made / "messages")
    store(tmp_path / "routing/hub/00/2026/11/24/15/07.avro", ROUTING, [routed(one) for one in found], "null")
    events = [captured(number, one) for number, one in enumerate(found)]
    store(tmp_path / "capture/namespace/hub/0/2026/11/24/15/07/00.avro", CAPTURE, events)
    tables = {}
    for name, folder in {"json": made / "messages", "a": tmp_path / "routing", "b": tmp_path / "capture"}.items():
        audit = decode([folder], made / "manifests", tmp_path / f"table-{name}")
        assert audit.ok, str(audit)
        tables[name] = read(tmp_path / f"table-{name}")
    assert tables["json"].num_rows > 0
    assert tables["a"].equals(tables["json"])
    assert tables["b"].equals(tables["json"])
    # Routed twice, to two containers: each record is still there once.
    assert decode([tmp_path / "routing"], None, tmp_path / "table-json").ok
    assert read(tmp_path / "table-json").equals(tables["json"])


def test_a_file_that_is_cut_gives_what_comes_before_the_cut_and_is_named(made: Path, tmp_path: Path) -> None:
    found = received(made / "messages")
    path = store(tmp_path / "cut/07.avro", ROUTING, [routed(one) for one in found])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    *whole, last = files.read(path)
    assert 0 < len(whole) < len(found)
    assert [one.body for one in whole if isinstance(one, messages.Received)] == [m.body for m in found[: len(whole)]]
    assert isinstance(last, messages.Unreadable)
    assert f"07.avro: is no whole Avro file, read up to record {len(whole)} (" in str(last)
    audit = decode([tmp_path / "cut"], made / "manifests", tmp_path / "table")
    assert not audit.ok
    assert "is no whole Avro file" in audit.problems[0]
    path.write_bytes(content)  # it had not been written to its end
    assert decode([tmp_path / "cut"], None, tmp_path / "table").ok


def test_records_that_are_no_message_of_ours_are_named_with_their_number(made: Path, tmp_path: Path) -> None:
    first = received(made / "messages")[0]
    rows = [
        routed(first),
        routed(first, contentType="application/json"),
        routed(first, connectionDeviceId="another"),
        {**routed(first), "EnqueuedTimeUtc": "yesterday"},
        {**routed(first), "Body": None},
        {**routed(first), "SystemProperties": {}},
    ]
    found = list(files.read(store(tmp_path / "07.avro", ROUTING, rows)))
    kinds = [type(one).__name__ for one in found]
    assert kinds == ["Received", "Other", "Unreadable", "Unreadable", "Unreadable", "Unreadable"]
    problems = [str(one).partition("07.avro:")[2] for one in found[2:]]
    assert problems[0] == f"3: a message of '{first.vehicle}' that 'another' sent; left out"
    assert problems[1].startswith("4: no message of IoT Hub or Event Hubs (ValueError")
    assert problems[3] == "6: nothing says which device sent the message (connectionDeviceId); left out"
    other = store(tmp_path / "08.avro", {"type": "record", "name": "Cat", "fields": []}, [{}])
    assert "08.avro:1: no message of IoT Hub or Event Hubs (KeyError" in str(next(avro.read(other)))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_bytes_in_an_avro_file_stop_the_reading(made: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "07.avro"
    store(path, ROUTING, [routed(one) for one in received(made / "messages")[:3]], "null")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(data.draw(st.sampled_from([bytes(content), b"Obj\x01" + bytes(content[:40]), b""])))
    for found in files.read(path):
        assert isinstance(found, messages.Received | messages.Unreadable | messages.Other)

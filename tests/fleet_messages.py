"""The other end of the line, made by hand: messages as vehicles send them, and the rows that they must become."""

import base64
import json
import struct
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from cy_core.frames import Frames
from edge import block as blocks
from edge.decoder import Decoder
from edge.manifest import DecoderManifest, Message, Signal
from edge.message import Block, Clock, Counters, Coverage, Eviction, Quality, Record, pack
from fleet import table
from fleet.audit import Audit
from fleet.decode import decode
from fleet.rows import SCHEMA, natural
from tests.reference.extract import extract

VEHICLE = "truck-7"
OUTBOX = bytes(range(16))
MANIFEST = DecoderManifest(
    ("can0", "can1"),
    (
        Message(
            "can0",
            1,
            "ENGINE",
            8,
            signals=(
                Signal("SPEED", 0, 16, factor=0.5, offset=-40),
                Signal("GEAR", 16, 4, labels={0: "P", 1: 'R, "back"'}),
                Signal("COUNTER", 56, 8),
            ),
        ),
        Message("can1", 1, "ENGINE", 8, signals=(Signal("COUNTER", 0, 8), Signal("TEMP", 32, 32, is_float=True))),
    ),
)
DECODER = Decoder(MANIFEST)
SECOND_US = 1_000_000
BOOT_US = 1_795_500_000 * SECOND_US  # 2026-11-24
RECORDED = Clock(quality=Quality.RECORDED)
Row = tuple[int, str, str, str, int | float, float, str | None]


def frames_of(numbers: Iterable[int], start_us: int = 0) -> Frames:
    """Frame n, 10 ms after the one before, on the buses in turn."""
    frames = Frames()
    for n in numbers:
        frames.append(start_us + 10_000 * n, n % 2, 1, struct.pack("<HBxf", n, n % 3, n / 3)[:8])
    return frames


def rows_of(numbers: Iterable[int], start_us: int = 0) -> list[Row]:
    """What the table must say of these frames, from the slow twin."""
    rows: list[Row] = []
    for n in numbers:
        message = MANIFEST.messages[n % 2]
        raws = extract(message, struct.pack("<HBxf", n, n % 3, n / 3)[:8])
        for signal in message.signals:
            raw = raws[signal.name]
            label = signal.labels.get(raw)  # type: ignore[call-overload]
            value = float(raw * signal.factor + signal.offset)
            rows.append((start_us + 10_000 * n, message.bus, "ENGINE", signal.name, raw, value, label))
    return rows


def block_of(
    first: int, end: int, *, missing: int = 0, source: str = "replay:drive.log", clock: Clock = RECORDED
) -> Block:
    columns = DECODER.decode_batch(frames_of(range(first, end)))
    counters = Counters(samples=columns.samples())
    return Block(blocks.encode(columns), clock, Coverage(source, first, end, missing), counters)


def record_of(sequence: int, block: Block, stream: str = "drive") -> Record:
    return Record(sequence, 5, stream, block.encode())


def message_of(
    records: list[Record],
    evictions: Iterable[Eviction] = (),
    *,
    vehicle: str = VEHICLE,
    outbox: bytes = OUTBOX,
    manifest: DecoderManifest = MANIFEST,
    enqueued: str = "2026-11-24T15:00:00.1230000Z",
    **system: str,
) -> bytes:
    """A line as IoT Hub's routing writes it."""
    body = pack(vehicle, outbox, bytes.fromhex(manifest.hash), records, evictions)
    line = {
        "EnqueuedTimeUtc": enqueued,
        "Properties": {},
        "SystemProperties": {
            "connectionDeviceId": vehicle,
            "connectionModuleId": "uplink",
            "contentType": "application/x-protobuf",
            **system,
        },
        "Body": base64.b64encode(body).decode(),
    }
    return json.dumps(line).encode() + b"\n"


def put(folder: Path, *files: Iterable[bytes]) -> Path:
    """Message files as the hub names them."""
    for minute, lines in enumerate(files):
        path = folder / f"messages/hub/00/2026/11/24/15/{minute:02}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(lines))
    return folder / "messages"


def decoded(folder: Path, *files: Iterable[bytes]) -> tuple[list[Row], Audit]:
    audit = decode([put(folder, *files)], {MANIFEST.hash: MANIFEST}, folder / "table")
    return rows_in(table.read(folder / "table")), audit


def rows_in(found: pa.Table) -> list[Row]:
    fields = {(m.bus, m.name, s.name): s for m in MANIFEST.messages for s in m.signals}
    return [
        (time_us, bus, message, signal, natural(fields[bus, message, signal], raw, value)[0], value, label)
        for time_us, bus, message, signal, raw, value, label in zip(
            *found.select(SCHEMA.names).to_pydict().values(), strict=True
        )
    ]


def eviction(first: int, last: int, count: int, stream: str = "drive", reason: str = "quota") -> Eviction:
    return Eviction(first, last, count, stream, reason, 0)

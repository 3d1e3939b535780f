"""What the golden files of version 1 were made from; run as a module, it makes those that are not there yet.

    manifest-1.manifest     a decoder manifest file                      manifest-1.json   its messages and signals
    frame-1.piece           a piece of edge/source/stream.py             frame-1.json      its frames
    block-1.block           those frames, decoded by that manifest       block-1.json      its groups, as bit patterns
    frames-2.block          those frames by the codec, without a table   (frame-1.json)
    frames-3.block          the same with second contexts
    signals-2.block         what block-1 holds, by the codec             (block-1.json)
    summaries-2.block       what some of its signals came to       summaries-2.json  the form, and the groups
    rides-2.block           changes of it, so that groups share rows     rides-2.json      its groups
    message-1.message       an envelope with that block and an eviction  message-1.json    its fields

A file that was once released never changes: what was stored then must be readable for ever. A new version of a
format gets new files beside them.
"""

import json
import struct
import sys
from pathlib import Path
from typing import Any

from cy_core.columns import Columns
from cy_core.frames import Frames
from cy_core.reduce import Reducer
from edge import block
from edge.campaign import DROPPED
from edge.decoder import Decoder
from edge.manifest import FORMAT, DecoderManifest, Message, Signal, Source
from edge.message import Block, Clock, Counters, Coverage, Envelope, Eviction, Quality, Record, pack, unpack
from edge.source.stream import PIECE, SLOT_BYTES
from edge.summary import Reader, Summary, SummingReducer
from edge.table import Table

FOLDER = Path(__file__).parent
ADDED = {"protocol", "of_id", "initial", "invalid"}
START_US = 1_700_000_000_000_000


def manifest() -> DecoderManifest:
    motion = (
        Signal("SPEED", 0, 16, factor=0.01, unit="km/h", minimum=0, maximum=250),
        Signal("TORQUE", 23, 12, big_endian=True, signed=True, offset=-40),
        Signal("STATE", 32, 2, labels={0: "off", 1: "on", 3: "fault"}),
        Signal("TEMPERATURE", 40, 16, is_float=True, unit="degC"),
    )
    page = (
        Signal("PAGE", 0, 4),
        Signal("VOLTAGE", 8, 16, factor=0.001, unit="V", selector=0, selected_by=((0, 0),)),
        Signal("SUBPAGE", 8, 4, selector=0, selected_by=((1, 2), (5, 5))),
        Signal("DEPTH", 16, 8, signed=True, selector=2, selected_by=((3, 3),)),
    )
    cells = (
        Signal("ENERGY", 0, 64, big_endian=False, factor=3),
        Signal("POWER", 64, 32, is_float=True, unit="W"),
        Signal("RATIO", 96, 64, is_float=True),
        Signal("COUNT", 167, 64, big_endian=True, signed=True),
        Signal("ACROSS", 235, 62, big_endian=False),
        Signal("LAST", 504, 8),
    )
    return DecoderManifest(
        ("can0", "can1"),
        (
            Message("can0", 0x100, "MOTION", 8, signals=motion, cycle_ms=10),
            Message("can0", 0x200, "DIAG", 3, signals=page),
            Message("can1", 0x18FEF100, "CELLS", 64, extended=True, signals=cells),
            Message("can1", 0x18FEF200, "SILENT", 8, extended=True),
        ),
        (Source("can0", "motion.dbc", "ab" * 32),),
    )


def frames() -> Frames:
    made = Frames()
    for i in range(40):
        time_us = START_US + 10_000 * i + (i * i * 7) % 13
        motion = struct.pack("<H", 4000 + 25 * i) + bytes([i * 5 & 0xFF, i << 4 & 0xFF, 1, *struct.pack("<e", i / 8)])
        made.append(time_us, 0, 0x100, motion)
        if i % 4 == 0:
            made.append(time_us + 300, 0, 0x200, [b"\x00\xb8\x0b", b"\x01\x03\xf0", b"\x05\x01\x11"][i // 4 % 3])
        if i % 8 == 1:
            cells = struct.pack("<QfdqQ", (1 << 63) + i, 0.5 * i, -1.25, -i, 0x0123456789ABCDEF * (i + 1) % (1 << 64))
            made.append(time_us + 500, 1, 0x98FEF100, cells.ljust(63, b"\x55") + bytes([i]), flags=5)
    end = START_US + 400_000
    made.append(end, 0, 0x100, b"\x10\x27")  # cut short: SPEED alone
    made.append(end + 1, 0, 0x7FF, b"\xff")  # of no message
    made.append(end + 1, 0, 0x40000100, b"")  # remote
    made.append(end + 2, 0, 0x20000004, b"\x00\x04\x00\x00\x00\x00\x00\x00")  # error
    made.append(end + 2, 1, 0x98FEF200, b"\x01")
    return made


def columns() -> Columns:
    return Decoder(manifest()).decode_batch(frames())


def summaries() -> bytes:
    """Of MOTION: mean, count and sum of SPEED over 0.1 s; times in classes of TORQUE and STATE, and of two labels."""
    rows = [
        Summary(0, 7, 100_000, 0, 0.01, 0.0, (), (), ()),
        Summary(1, 8, 200_000, 50_000, 1.0, -40.0, (-30.5, 0.0, 1e6), (), ()),
        Summary(2, 8, 0, 0, 1.0, 0.0, ("on", "fault"), ((1, 0), (3, 1)), ()),
    ]
    decoder = Decoder(manifest())
    reducer = SummingReducer(decoder.plan, [DROPPED] * decoder.plan.signal_count, rows)
    reducer.reduce(decoder.decode_batch(frames()), Columns(decoder.plan), START_US + 400_000, True)
    return reducer.summaries(1 << 18)[0][0]


def summary_values(block: bytes) -> list[Any]:
    found, columns = Reader(manifest()).read(block)
    return [json.loads(found.description), *block_values(columns)]


def changes() -> Columns:
    """Of each signal the samples that are not what the one before was, in a group of its own."""
    decoder = Decoder(manifest())
    made = Columns(decoder.plan)
    rules = [("change", 0.0, 0, 0, 0, (), False)] * decoder.plan.signal_count
    Reducer(decoder.plan, rules).reduce(decoder.decode_batch(frames()), made, 0)
    return made


def message(data: bytes) -> bytes:
    """data: a block."""
    clock = Clock(bytes(range(16)), 1_700_000_000_000_000, Quality.SYNCHRONISED)
    body = Block(data, clock, Coverage("socketcan:can0,can1", 100, 160, 7), Counters(214, 1, 1, 1, 1, 0, 7)).encode()
    records = [Record(41, 5, "drive", body), Record(43, 0, "hard_brake", b"")]
    evictions = [Eviction(1, 40, 12, "drive", "quota", 1_700_000_000_123_456)]
    return pack("van-7", bytes(range(16, 32)), bytes.fromhex(manifest().hash), records, evictions)


# What the files hold, as JSON


def manifest_values(found: DecoderManifest) -> dict[str, Any]:
    messages = [{**_row(row), "signals": [_row(signal) for signal in row.signals]} for row in found.messages]
    sources = [source._asdict() for source in found.sources]
    return _plain({"hash": found.hash, "buses": found.buses, "messages": messages, "sources": sources})


def _row(row: Message | Signal) -> dict[str, Any]:
    """Fields that were added later are named only where they are not what they are without being given."""
    defaults = row._field_defaults
    return {name: value for name, value in row._asdict().items() if name not in ADDED or value != defaults[name]}


def frame_values(found: Frames) -> list[Any]:
    return [[time_us, bus, f"{can_id:08x}", flags, data.hex()] for time_us, bus, can_id, flags, data in found]


def block_values(found: Columns) -> list[Any]:
    """Values as bit patterns, in hex, one after the other."""
    return [
        {
            "message": group.message,
            "times_us": group.times.tolist(),
            "columns": [
                {"signal": signal, "format": code, "values": _values(bytes(data), code)}
                for signal, code, data in group.columns
            ],
        }
        for group in found.groups()
    ]


def _values(data: bytes, code: str) -> list[str]:
    size = struct.calcsize(code)
    return [data[i : i + size][::-1].hex() for i in range(0, len(data), size)]


def message_values(found: Envelope) -> dict[str, Any]:
    bodies = []
    for record in found.records:
        made = Block.decode(record.body)
        bodies.append({**_fields(made), "data": len(made.data)})
    records = [{**_fields(record), "body": body} for record, body in zip(found.records, bodies, strict=True)]
    return _plain({**_fields(found), "records": records, "evictions": [_fields(entry) for entry in found.evictions]})


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__struct_fields__}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "__struct_fields__"):
        return _plain(_fields(value))
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def main() -> None:
    records, payloads = frames().to_bytes()
    data = block.encode_columns(columns())
    files = {
        "manifest-1.manifest": f"{FORMAT}{manifest().hash}\n".encode() + manifest().body + b"\n",
        "manifest-1.json": _json(manifest_values(manifest())),
        "frame-1.piece": PIECE.pack(len(frames()), len(payloads) // SLOT_BYTES) + records + payloads,
        "frame-1.json": _json(frame_values(frames())),
        "block-1.block": data,
        "frames-2.block": block.encode_frames(frames(), manifest().buses, Table()),
        "frames-3.block": block.encode_frames(frames(), manifest().buses, Table(), mixed=True),
        "signals-2.block": block.encode(columns()),
        "summaries-2.block": summaries(),
        "summaries-2.json": _json(summary_values(summaries())),
        "rides-2.block": block.encode(changes()),
        "rides-2.json": _json(block_values(changes())),
        "block-1.json": _json(block_values(columns())),
        "message-1.message": message(data),
        "message-1.json": _json(message_values(unpack(message(data)))),
    }
    for name, content in files.items():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(content)
            print(f"made {FOLDER / name}", file=sys.stderr)


def _json(value: Any) -> bytes:
    """A line for each entry of a list."""
    rows = ",\n".join(json.dumps(row) for row in value) if isinstance(value, list) else json.dumps(value, indent=1)
    return (f"[\n{rows}\n]\n" if isinstance(value, list) else f"{rows}\n").encode()


if __name__ == "__main__":
    main()

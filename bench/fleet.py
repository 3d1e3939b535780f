"""The cloud side: blocks to Arrow, messages to a table, and the table's size against other layouts of the same rows."""

import base64
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.workload import Workload
from cy_core.columns import Columns
from edge import block
from edge.decoder import Decoder
from edge.message import Block, Clock, Counters, Coverage, Quality, Record, pack
from edge.table import Table
from fleet import generate, rows, table_file
from fleet.decode import decode
from fleet.lines import Lines, decode_block
from fleet.table import read

BLOCK_FRAMES = 8192
ROUNDS = 5
# What the same rows could be written as; one is that of the table.
LAYOUTS: dict[str, dict[str, Any]] = {
    "of the table": table_file.LAYOUT,
    "pyarrow's own, snappy": {},
    "zstd 9": {**table_file.LAYOUT, "compression_level": 9},
    "zstd 9, values split by byte": {
        "compression": "zstd",
        "compression_level": 9,
        "use_dictionary": ["bus", "message", "signal", "label"],
        "column_encoding": {
            "time_us": "DELTA_BINARY_PACKED",
            "raw": "DELTA_BINARY_PACKED",
            "value": "BYTE_STREAM_SPLIT",
        },
    },
}


def figures(load: Workload, folder: Path) -> Iterator[dict[str, Any]]:
    decoder, manifests = Decoder(load.manifest), {load.manifest.hash: load.manifest}
    lines, clock = Lines(manifests), Clock(quality=Quality.RECORDED)
    parts = [
        load.known.slice(at, min(at + BLOCK_FRAMES, len(load.known))) for at in range(0, len(load.known), BLOCK_FRAMES)
    ]
    packed = [block.encode(decoder.decode_batch(part)) for part in parts]
    raw = [block.encode_frames(part, load.manifest.buses, Table()) for part in parts]
    columns = Columns(decoder.plan)
    samples = sum(block.decode(one, decoder.plan, columns).samples() for one in packed)

    def to_columns() -> None:
        for one in packed:
            block.decode(one, decoder.plan, columns)

    def to_arrow(of: list[bytes]) -> None:
        for one in of:
            decode_block(lines, load.manifest.hash, one, clock, 0, 0, 0).table()

    for name, run in (
        ("blocks to columns", to_columns),
        ("blocks to Arrow, long form", partial(to_arrow, packed)),
        ("blocks of raw frames to Arrow, long form", partial(to_arrow, raw)),
    ):
        yield {
            "figure": name,
            "samples": samples,
            **_rates(_seconds(run), samples, len(load.known)),
            "asked": "4 M samples/s, or 1 M frames/s",
        }

    messages, seconds = folder / "fleet/messages", []
    _store(messages / "all.json", load, packed, parts, samples)
    for number in range(3):
        start = time.process_time()
        decode([messages], manifests, folder / f"fleet/table{number}")
        seconds.append(time.process_time() - start)
    yield {
        "figure": "messages to a table of Parquet",
        "samples": samples,
        **_rates(min(seconds), samples, len(load.known)),
    }

    found = read(folder / "fleet/table0").select(rows.SCHEMA.names)
    sizes = {name: _size(found, folder / "layout.parquet", layout) for name, layout in LAYOUTS.items()}
    whole = rows.whole_table(found)
    codes = [np.asarray(whole[name].chunk(0).indices) for name in ("bus", "signal", "message")]
    by_signal = whole.take(pa.array(np.lexsort((np.asarray(whole["time_us"]), *codes))))
    sizes["of the table, sorted by signal"] = _size(by_signal, folder / "layout.parquet", table_file.LAYOUT)
    best = min(size for name, size in sizes.items() if "sorted" not in name)
    yield {
        "figure": "Parquet, bytes a sample",
        **{name: size / samples for name, size in sizes.items()},
        "times the best in order of time": sizes["of the table"] / best,
        "asked": 1.2,
    }
    yield from _growth(folder)


def _growth(folder: Path) -> Iterator[dict[str, Any]]:
    """Cost by the size of the fleet: it should stay the same a message."""
    for vehicles in (2, 8, 32):
        made = folder / f"made-{vehicles}"
        truth = generate.write(made, vehicles, 1, seed=1)
        start = time.process_time()
        decode([made / "messages"], made / "manifests", folder / f"table-{vehicles}")
        seconds = time.process_time() - start
        yield {
            "figure": "messages to a table, small blocks",
            "vehicles": vehicles,
            "hours": 1,
            "messages": truth.messages,
            "ms a message": 1e3 * seconds / truth.messages,
            "samples a second": truth.samples / seconds,
        }


def _store(path: Path, load: Workload, packed: list[bytes], parts: list[Any], samples: int) -> None:
    path.parent.mkdir(parents=True)
    at = 0
    with path.open("wb") as file:
        for number, (data, part) in enumerate(zip(packed, parts, strict=True), start=1):
            coverage = Coverage("replay:bench", at, at + len(part))
            body = Block(
                data, Clock(quality=Quality.RECORDED), coverage, Counters(samples=samples // len(parts))
            ).encode()
            envelope = pack("bench", bytes(16), bytes.fromhex(load.manifest.hash), [Record(number, 5, "drive", body)])
            line = {
                "EnqueuedTimeUtc": "2026-11-24T15:00:00Z",
                "SystemProperties": {"connectionDeviceId": "bench"},
                "Body": base64.b64encode(envelope).decode(),
            }
            file.write(json.dumps(line).encode() + b"\n")
            at += len(part)


def _seconds(run: Any) -> float:
    """CPU seconds, the median of some rounds."""
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return sorted(found)[ROUNDS // 2]


def _rates(seconds: float, samples: int, frames: int) -> dict[str, Any]:
    return {
        "samples a second": samples / seconds,
        "frames a second": frames / seconds,
        "ns a sample": 1e9 * seconds / samples,
    }


def _size(found: pa.Table, path: Path, layout: dict[str, Any]) -> int:
    pq.write_table(found.unify_dictionaries(), path, row_group_size=table_file.ROWS_IN_GROUP, **layout)
    return path.stat().st_size

"""Bytes a frame and a sample, of each block alone with all headers, beside what else one would send; speed and memory.

    python -m bench compression

The table is trained on the first half of a recording, all is measured on the second. Blocks are 1, 10 and 60 s long.
Peers are given what they are good at: rows sorted by stream, so that they lose the order of frames; the best of their
settings; times at the recording's own resolution. FleetWise-style is what its agent sends, with times in ms: there ours
has ms as well. Layouts and what was measured elsewhere: docs/decisions/011-codec.md.
"""

import gzip
import importlib
import io
import json
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard

from bench.workload import DATA, ROOT, Workload
from cy_core.columns import Columns
from cy_core.frames import Frames
from edge import block, pack, train
from edge.campaign import Campaign, Selection, SignalRule
from edge.database import load_databases
from edge.decoder import Decoder
from edge.logs import open_log
from edge.manifest import DecoderManifest
from edge.table import Table
from edge.train_signals import train_signals

SECONDS = (1, 10, 60)
RECORD = np.dtype(
    [("t", "<i8"), ("id", "<u4"), ("bus", "u1"), ("length", "u1"), ("flags", "u1"), ("_", "u1"), ("data", "u1", 8)]
)
FOLLOW = ("CHECKSUM", "COUNTER", "SUM")  # names of signals that follow from others
ROUNDS = 5
MEMORY = """
import sys
from pathlib import Path
from edge import block, pack, table
known = table.load(sys.argv[1])
pack.pack(Path(sys.argv[2]), Path(sys.argv[3]), known, 10, 1)
pack.unpack(Path(sys.argv[3]), Path(sys.argv[3] + ".log"), block.Tables([known]))
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


class Recording(NamedTuple):
    name: str
    log: str
    databases: dict[str, tuple[str, ...]]
    asked: dict[tuple[int, int], float]  # bytes a frame, by (seconds, us)


RECORDINGS = (
    Recording(
        "RAV4",
        "toyota_rav4_2017/rav4.log.gz",
        {"can0": ("toyota_new_mc_pt_generated.dbc",), "can1": ("toyota_adas.dbc",)},
        {(10, 1): 1.80, (10, 1000): 1.22, (1, 1): 2.0},
    ),
    Recording(
        "Subaru",
        "subaru_2021/subaru.log.gz",
        {"can0": ("sample_can_spec.dbc", "subaru_outback_2015_generated.dbc")},
        {(10, 1): 1.55, (10, 1000): 0.80},
    ),
    Recording(
        "Kona",
        "hyundai_kona_ev/230112-7-2019-power-off-on-ready-off.log.gz",
        {"can0": ("pcan.dbc",), "can1": ("hyundai_can_generated.dbc",)},
        {},
    ),
    Recording(
        "truck",
        "j1939_truck_idle/truck.log.gz",
        {"can1": ("j1939_common.dbc", "j1939.dbc"), "can2": ("canmod-gps.dbc",)},
        {(10, 1): 1.40},
    ),
)


def figures(_: Workload, folder: Path) -> Iterator[dict[str, Any]]:
    for recording in RECORDINGS:
        if not (DATA / recording.log).exists():
            yield {"figure": "compression", "recording": recording.name, "skipped": "not there: set BORDNETZ_DATA"}
            continue
        first, second, buses = _halves(recording.log)
        tables = {
            (tick_us, mixed): train.train([(first, buses)], tick_us, mixed=mixed)
            for tick_us in (1, 1000)
            for mixed in (False, True)
        }
        yield from _sizes(recording, second, buses, tables)
        yield _speed(recording, second, buses, tables[1, False], False)
        yield _speed(recording, second, buses, tables[1, True], True)
        yield _memory(recording, folder, tables[1, False])
        yield from _signals(recording)
        if recording.name == "RAV4":
            yield _powertrain(first, second)


def _halves(name: str, buses: tuple[str, ...] = ()) -> tuple[Frames, Frames, tuple[str, ...]]:
    """Of a recording; buses: those that are numbered first."""
    frames, log = Frames(), open_log(DATA / name, buses)
    log.read(frames, 1 << 30)
    log.close()
    middle = len(frames) // 2
    return frames.slice(0, middle), frames.slice(middle, len(frames)), log.buses


# -- frames --------------------------------------------------------------------------------------------------


def _sizes(
    recording: Recording, frames: Frames, buses: tuple[str, ...], tables: dict[tuple[int, bool], Table]
) -> Iterator[dict[str, Any]]:
    for seconds in SECONDS:
        parts = list(pack.cut(frames, seconds))
        for tick_us in (1, 1000):
            ours, mixed = (
                sum(len(block.encode_frames(frames, buses, table, tick_us, *part, mixed=mixed)) for part in parts)
                / len(frames)
                for mixed, table in ((mixed, tables[tick_us, mixed]) for mixed in (False, True))
            )
            peers: dict[str, float | str] = {}
            for name, (needs, size) in PEERS.items():
                if missing := _missing(needs):
                    peers[name] = f"not installed: {missing}"
                    continue
                peers[name] = sum(size(_rows(frames, part, tick_us), buses) for part in parts) / len(frames)
            sized = {name: size for name, size in peers.items() if isinstance(size, float)}
            columnar = [size for name, size in sized.items() if name.startswith(("Parquet", "pcodec"))]
            yield {
                "figure": f"{recording.name}, every frame, {seconds} s, {'own stamps' if tick_us == 1 else 'ms'}",
                "bytes_per_frame": ours,
                "mixed": mixed,
                "asked": recording.asked.get((seconds, tick_us)),
                "against": {name: round(size, 2) if isinstance(size, float) else size for name, size in peers.items()},
                "times_smaller_than_parquet_and_pcodec": min(columnar) / ours if columnar else None,
                "times_smaller_mixed": min(columnar) / mixed if columnar else None,
                "asked_times": 2,
            }


def _missing(modules: tuple[str, ...]) -> str:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            return module
    return ""


def _rows(frames: Frames, part: tuple[int, int], tick_us: int) -> Any:
    """The frames as an array, times rounded."""
    rows = np.frombuffer(frames.slice(*part).to_bytes()[0], RECORD).copy()
    rows["t"] = (rows["t"] + tick_us // 2) // tick_us * tick_us
    return rows


def _candump(rows: Any, buses: tuple[str, ...]) -> int:
    lines = (
        f"({t // 1_000_000}.{t % 1_000_000:06}) {buses[bus]} {can_id & 0x1FFFFFFF:0{8 if can_id >> 31 else 3}X}#"
        f"{data[:length].tobytes().hex().upper()}\n"
        for t, can_id, bus, length, _, _, data in rows
    )
    return len(gzip.compress("".join(lines).encode(), 6))


def _mf4(rows: Any, _: tuple[str, ...]) -> int:
    from asammdf import MDF, Signal

    mdf, times = MDF(version="4.10"), rows["t"] / 1e6
    mdf.append([Signal(rows[name], times, name=name) for name in ("bus", "id", "length", "data")])
    with io.BytesIO() as file:
        mdf.save(file, compression=2)
        mdf.close()
        return len(file.getvalue())


def _by_stream(rows: Any) -> Any:
    return rows[np.lexsort((rows["t"], rows["length"], rows["id"], rows["bus"]))]


def _parquet(rows: Any, _: tuple[str, ...]) -> int:
    import pyarrow as pa

    rows = _by_stream(rows)
    columns: dict[str, Any] = {
        name: pa.array(np.ascontiguousarray(rows[name]).astype("i4")) for name in ("bus", "id", "length")
    }
    columns["t"] = pa.array(np.ascontiguousarray(rows["t"]))
    data = pa.py_buffer(np.ascontiguousarray(rows["data"]).tobytes())
    columns["data"] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), len(rows), [None, data])
    encodings = dict.fromkeys(("bus", "id", "length", "t"), "DELTA_BINARY_PACKED") | {"data": "BYTE_STREAM_SPLIT"}
    return _parquet_size(pa.table(columns), encodings)


def _parquet_size(table: Any, encodings: dict[str, str]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", compression_level=19, use_dictionary=False, write_statistics=False,
        column_encoding=encodings, store_schema=False,
    )  # fmt: skip
    return int(sink.tell())


def _streams(rows: Any) -> list[Any]:
    rows = _by_stream(rows)
    names = (rows["bus"].astype("u8") << 40) | (rows["id"].astype("u8") << 8) | rows["length"]
    return np.split(rows, np.flatnonzero(np.diff(names.astype("i8"))) + 1)


def _pcodec(rows: Any, _: tuple[str, ...]) -> int:
    """Each stream's times and each of its bytes; a constant byte takes one; 8 bytes name a stream."""
    size = 0
    for stream in _streams(rows):
        size += 8 + _pco(stream["t"])
        for byte in range(stream["length"][0]):
            size += _pco(stream["data"][:, byte].astype("u2"))
    return size


def _pco(numbers: Any) -> int:
    from pcodec import ChunkConfig, standalone

    if not np.any(numbers != numbers[0]):
        return 1 + numbers.itemsize
    return len(standalone.simple_compress(np.ascontiguousarray(numbers), ChunkConfig(compression_level=12)))


def _delta_columns(rows: Any, _: tuple[str, ...]) -> int:
    """By stream: times as differences of differences, bytes as differences, in planes, under zstd -19."""
    head, times, planes = [], [], []
    for stream in _streams(rows):
        head.append(struct.pack("<BIBI", stream["bus"][0], stream["id"][0], stream["length"][0], len(stream)))
        steps = np.diff(np.diff(stream["t"], prepend=0), prepend=0)
        times.append(((steps << 1) ^ (steps >> 63)).astype("<u8"))
        for byte in range(stream["length"][0]):
            planes.append(np.diff(stream["data"][:, byte], prepend=np.uint8(0)).tobytes())
    spread = np.concatenate(times).view("u1").reshape(-1, 8).T.tobytes()
    return len(zstandard.ZstdCompressor(level=19).compress(b"".join([*head, spread, *planes])))


Size = Callable[[Any, tuple[str, ...]], int]
PEERS: dict[str, tuple[tuple[str, ...], Size]] = {
    "candump, gzip -6": ((), _candump),
    "MF4, transposed deflate": (("asammdf",), _mf4),
    "Parquet by id, delta and byte-stream-split, zstd -19": (("pyarrow",), _parquet),
    "pcodec by id and byte": (("pcodec",), _pcodec),
    "delta columns, zstd -19": ((), _delta_columns),
}


# -- speed and memory ----------------------------------------------------------------------------------------


def _speed(recording: Recording, frames: Frames, buses: tuple[str, ...], table: Table, mixed: bool) -> dict[str, Any]:
    parts = list(pack.cut(frames, 10))
    made = [block.encode_frames(frames, buses, table, 1, *part, mixed=mixed) for part in parts]
    known, into = block.Tables([table]), Frames()

    def encode() -> None:
        for part in parts:
            block.encode_frames(frames, buses, table, 1, *part, mixed=mixed)

    def decode() -> None:
        for one in made:
            into.clear()
            block.decode_frames(one, into, known)

    return {
        "figure": f"{recording.name}, speed of 10 s blocks{', mixed' if mixed else ''}, million frames a CPU second",
        "encode": len(frames) / _cpu_s(encode) / 1e6,
        "decode": len(frames) / _cpu_s(decode) / 1e6,
        "asked": None if mixed else 1.5,
    }


def _cpu_s(work: Callable[[], None]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def _memory(recording: Recording, folder: Path, table: Table) -> dict[str, Any]:
    """A fresh process that packs and unpacks all of the recording."""
    table.save(folder / "bench.table")
    command = [sys.executable, "-c", MEMORY, str(folder / "bench.table"), str(DATA / recording.log)]
    done = subprocess.run(
        [*command, str(folder / "bench.packed")], stdout=subprocess.PIPE, cwd=ROOT, check=True, timeout=600
    )
    return {
        "figure": f"{recording.name}, pack and unpack, whole process",
        "peak_mb": int(done.stdout) / 1024,
        "asked_mb": 64,
    }


# -- signals -------------------------------------------------------------------------------------------------


def _signals(recording: Recording) -> Iterator[dict[str, Any]]:
    """Decoded, without checksums and counters; the table is for times in ms."""
    place = (DATA / recording.log).parent
    manifest = load_databases({bus: [place / name for name in names] for bus, names in recording.databases.items()})
    decoder = Decoder(manifest)
    keep = bytes(not name.endswith(FOLLOW) for name, _, _ in manifest.names())
    everything = Selection("all", 5, keep, Campaign({"*": SignalRule()}, tick_us=1000))
    first, frames, _ = _halves(recording.log, manifest.buses)
    table = train_signals([everything], manifest, [first])
    ways: dict[str, dict[str, Any]] = {
        "exact": {},
        "ms": {"tick_us": 1000},
        "ms, table": {"tick_us": 1000, "table": table},
        "10 ms lines": {"tolerance_us": 10_000},
    }
    for seconds in SECONDS:
        batches = [decoder.decode_batch(frames.slice(*part)) for part in pack.cut(frames, seconds)]
        samples = sum(batch.samples(keep) for batch in batches)
        sizes = {
            name: sum(len(block.encode(batch, keep, **how)) for batch in batches) / samples
            for name, how in ways.items()
        }
        columns = [_signal_columns(batch, keep) for batch in batches]
        peers: dict[str, float | str] = {"JSON per sample": sum(_json(part, manifest) for part in columns) / samples}
        for name, (needs, size) in SIGNAL_PEERS.items():
            missing = _missing(needs)
            peers[name] = f"not installed: {missing}" if missing else sum(map(size, columns)) / samples
        fleetwise = peers["FleetWise-style protobuf, snappy"]
        yield {
            "figure": f"{recording.name}, decoded signals, {seconds} s",
            "bytes_per_sample": {name: round(size, 3) for name, size in sizes.items()},
            "samples": samples,
            "against": {name: round(size, 2) if isinstance(size, float) else size for name, size in peers.items()},
            "times_smaller_than_fleetwise": fleetwise / sizes["ms, table"] if isinstance(fleetwise, float) else None,
            "asked_times": 15,
        }


def _powertrain(first: Frames, second: Frames) -> dict[str, Any]:
    """Every sample of bus 0, within 0.1 % of the range (the smaller of the database's and the bits') and 10 ms."""
    place = DATA / "toyota_rav4_2017"
    manifest = load_databases({"can0": [place / "toyota_new_mc_pt_generated.dbc"]})
    follow = (*FOLLOW, "S07CNT", "SM228", "VSCF02SM", "ENCODER")
    keep, errors, rules = bytearray(), [], []
    for name, _, signal in manifest.names():
        span = ((1 << signal.length) - 1) * abs(signal.factor)
        if signal.minimum is not None and signal.maximum is not None and signal.maximum > signal.minimum:
            span = min(span, signal.maximum - signal.minimum)
        keep.append(not name.endswith(follow))
        errors.append(0.001 * span)
        rules.append(("every", 0.001 * span / abs(signal.factor), 0, 0, 0, (), signal.factor < 0))
    campaign, decoder = Campaign({"*": SignalRule()}, time_tolerance_s=0.01), Decoder(manifest)
    steps = block._steps(decoder.plan, errors)
    table = train_signals([Selection("all", 5, bytes(keep), campaign, tuple(rules), steps=steps)], manifest, [first])
    sizes = {}
    batches = [decoder.decode_batch(second.slice(*part)) for part in pack.cut(second, 10)]
    for name, known in (("no table", None), ("table", table)):
        made = [block.encode(b, keep, table=known, max_errors=errors, tolerance_us=10_000) for b in batches]
        sizes[name] = statistics.mean(map(len, made))
    samples = sum(batch.samples(keep) for batch in batches)
    return {
        "figure": "RAV4, the powertrain's signals at full rate, 0.1 % and 10 ms, 10 s",
        "bytes": sizes,
        "samples_per_block": samples / len(batches),
        "asked": 2700,
    }


Column = tuple[int, int, Any, Any, Any]  # message, signal, times in us, raw values, values


def _signal_columns(batch: Columns, keep: bytes) -> list[Column]:
    manifest, found = batch.plan.manifest, []
    first = np.cumsum([0, *(len(message.signals) for message in manifest.messages)])
    for group in batch.groups():
        times = np.array(group.times)
        for number, code, data in group.columns:
            if keep[first[group.message] + number]:
                signal = manifest.messages[group.message].signals[number]
                raw = np.frombuffer(bytes(data), np.dtype(code))
                raw = raw if len(raw) == len(times) else np.repeat(raw, len(times))
                found.append((group.message, number, times, raw, raw.astype("f8") * signal.factor + signal.offset))
    return found


def _json(columns: list[Column], manifest: DecoderManifest) -> int:
    """A message for each sample, as samples for IoT Edge send it."""
    size = 0
    for message, number, times, _, values in columns:
        name = f"{manifest.messages[message].name}.{manifest.messages[message].signals[number].name}"
        fixed = len(json.dumps({"time": "2026-01-01T00:00:00.000000Z", "signal": name, "value": 0})) - 1
        size += fixed * len(times) + sum(len(repr(value)) for value in values.tolist())
    return size


def _fleetwise(columns: list[Column]) -> int:
    """Of each sample the fields of CapturedSignal: relative time in ms, signal, a double."""
    import pyarrow as pa

    rows = sorted(
        (t, signal, value)
        for signal, (_, _, times, _, values) in enumerate(columns, 1)
        for t, value in zip((times // 1000).tolist(), values.tolist(), strict=True)
    )
    start = rows[0][0] if rows else 0
    out = bytearray(struct.pack("<B16sB16sBIBQ", 10, b"", 18, b"", 24, 0, 32, start))
    for t, signal, value in rows:
        body = b"\x08" + _varint(2 * (t - start)) + b"\x10" + _varint(signal) + b"\x21" + struct.pack("<d", value)
        out += b"\x2a" + _varint(len(body)) + body
    return len(pa.compress(bytes(out), codec="snappy", asbytes=True))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _signals_pcodec(columns: list[Column]) -> int:
    """Raw integers; the times of a message once, in ms; 8 bytes name a column."""
    size, seen = 0, set()
    for message, _, times, raw, _ in columns:
        if (message, len(times)) not in seen:
            seen.add((message, len(times)))
            size += _pco(times // 1000)
        size += 8 + _pco(raw.astype("i2") if raw.dtype.itemsize == 1 else raw)
    return size


def _signals_parquet(columns: list[Column]) -> int:
    """Long: signal, time in ms, value, sorted by signal."""
    import pyarrow as pa

    signal = np.concatenate([np.full(len(times), n, "i4") for n, (_, _, times, _, _) in enumerate(columns)])
    times = np.concatenate([times // 1000 for _, _, times, _, _ in columns])
    values = np.concatenate([values.astype("f8") for *_, values in columns])
    table = pa.table({"signal": signal, "t": times, "value": values})
    return _parquet_size(
        table, {"signal": "DELTA_BINARY_PACKED", "t": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"}
    )


SIGNAL_PEERS: dict[str, tuple[tuple[str, ...], Callable[[list[Column]], int]]] = {
    "FleetWise-style protobuf, snappy": (("pyarrow",), _fleetwise),
    "Parquet by signal, delta and byte-stream-split, zstd -19": (("pyarrow",), _signals_parquet),
    "pcodec by signal": (("pcodec",), _signals_pcodec),
}

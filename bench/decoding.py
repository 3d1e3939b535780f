"""Decoding in memory: batches and single frames, against cantools and the C that it generates."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cantools

from bench import generated_c
from bench.pairs import pairs
from bench.workload import DATA, Workload
from cy_core.columns import Columns
from edge.database import load_databases
from edge.decoder import Decoder
from edge.manifest import load as load_manifest

LARGEST = DATA / "databases/canmatrix__j1939.dbc"
SLOW_FRAMES = 20_000  # of the log, for what takes microseconds a frame


def figures(load: Workload, folder: Path) -> Iterator[dict[str, Any]]:
    decoder = Decoder(load.manifest)
    columns = Columns(decoder.plan)
    known = load.known
    count = len(known)
    records, slots = known.to_bytes()

    def whole() -> object:
        return decoder.decode_batch(known, columns)

    databases = {bus: _database(paths) for bus, paths in load.databases.items()}
    library = generated_c.build([database.messages for database in databases.values()], folder / "generated")
    unpacked = library.decode(records, slots, count)
    own, peer, ratio = pairs(whole, lambda: library.decode(records, slots, count), 15, 50, 50)
    yield _figure(
        "decode, whole log in one buffer", own, count, "generated C -O3, into structs", peer, unpacked, ratio, 3
    )

    some = known.slice(0, SLOW_FRAMES)
    listed = [(databases[load.manifest.buses[bus]], can_id & 0x1FFFFFFF, data) for _, bus, can_id, _, data in some]

    def with_cantools() -> None:
        for database, can_id, data in listed:
            database.decode_message(can_id, data)

    own, peer, ratio = pairs(whole, with_cantools, 7, 50)
    ratio *= count / len(listed)
    yield _figure(
        "decode, whole log in one buffer", own, count, "cantools decode_message", peer, len(listed), ratio, 400
    )

    seconds = load.seconds()

    def by_second() -> None:
        for batch in seconds:
            decoder.decode_batch(batch, columns)

    own, peer, ratio = pairs(by_second, with_cantools, 7, 50)
    ratio *= count / len(listed)
    yield _figure("decode, 1 s batches", own, count, "cantools decode_message", peer, len(listed), ratio, 300)

    single = [(load.manifest.buses[bus], can_id & 0x1FFFFFFF, data, can_id >> 31) for _, bus, can_id, _, data in some]

    def one_by_one() -> None:
        decode = decoder.decode
        for bus, can_id, data, extended in single:
            decode(bus, can_id, data, extended=extended)

    own, peer, ratio = pairs(one_by_one, with_cantools, 7)
    yield _figure(
        "decode() of one frame to a dict", own, len(single), "cantools decode_message", peer, len(listed), ratio, 8
    )
    yield _loading(folder)


def _loading(folder: Path) -> dict[str, Any]:
    """Of the largest of the public databases, from the file of its compiled manifest to a decoder."""
    figure = "manifest of the largest database, loaded"
    if not LARGEST.exists():
        return {"figure": figure, "skipped": "not there: set BORDNETZ_DATA"}
    manifest, path, times = load_databases({"can0": [LARGEST]}), folder / "largest.manifest", []
    manifest.save(path)
    for _ in range(15):
        start = time.process_time()
        loaded = load_manifest(path)
        read = time.process_time()
        Decoder(loaded)
        times.append((1e3 * (read - start), 1e3 * (time.process_time() - start)))
    read_ms, decoder_ms = (statistics.median(each) for each in zip(*times, strict=True))
    signals = sum(len(message.signals) for message in manifest.messages)
    return {"figure": figure, "signals": signals, "ms": read_ms, "ms_with_decoder": decoder_ms, "asked_at_most": 20}


def _database(paths: list[Path]) -> Any:
    database = cantools.database.Database(strict=False)
    for path in paths:
        database.add_dbc_file(path)
    return database


def _figure(
    name: str, own: float, frames: int, peer: str, peer_s: float, peer_frames: int, ratio: float, asked: float
) -> dict[str, Any]:
    return {
        "figure": name,
        "ns_per_frame": 1e9 * own / frames,
        "frames": frames,
        "against": peer,
        "against_ns_per_frame": 1e9 * peer_s / peer_frames,
        "against_frames": peer_frames,
        "times_faster": ratio,
        "asked": asked,
    }

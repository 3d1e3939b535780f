"""Decoding other kinds of traffic than the plain one: multiplexed, 29-bit identifiers, CAN FD to 64 bytes, J1939.

Each in whole logs and in batches of one second, against cantools, which is told the message of every frame: it could
not find J1939's; and against the C that cantools generates, which finds J1939's by a table of our own (generated_c.py).
That has one struct a message, without times, which the next frame overwrites, and does not unpack short payloads.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import generated_c
from bench.pairs import pairs
from bench.workload import DATA, Workload
from cy_core.columns import Columns
from cy_core.frames import Frames
from edge.database import load_databases, load_with_cantools
from edge.decoder import Decoder
from edge.logs import open_log

SLOW_FRAMES = 4_000  # of a log, for what takes microseconds a frame
ASKED = 100

Frame = tuple[int, int, int, int, bytes]


class Kind(NamedTuple):
    name: str
    log: str
    bus: str
    databases: tuple[str, ...]
    keep: Callable[[Frame], bool]
    by_pgn: bool = False


KINDS = (
    Kind("multiplexed", "vag_obd2_gps/drive-a.log.gz", "can1", ("OBD-v4.4.dbc",), lambda frame: True),
    Kind(
        "29-bit",
        "synthetic_vw_mqb_meb/meb-fd.log.gz",
        "can1",
        ("vw_meb_generated.dbc",),
        lambda frame: frame[2] >> 31 == 1,
    ),
    Kind(
        "CAN FD over 8 bytes",
        "synthetic_vw_mqb_meb/meb-fd.log.gz",
        "can1",
        ("vw_meb_generated.dbc",),
        lambda frame: len(frame[4]) > 8,
    ),
    Kind("J1939", "j1939_truck_idle/truck.log.gz", "can1", ("j1939_common.dbc", "j1939.dbc"), lambda frame: True, True),
)


def figures(_: Workload, folder: Path) -> Iterator[dict[str, Any]]:
    for kind in KINDS:
        if (DATA / kind.log).exists():
            yield from _figures(kind, folder / kind.name.replace(" ", "_"))


def _figures(kind: Kind, folder: Path) -> Iterator[dict[str, Any]]:
    log = DATA / kind.log
    paths = [log.parent / name for name in kind.databases]
    manifest = load_databases({kind.bus: paths})
    decoder = Decoder(manifest)
    columns, everything, frames = Columns(decoder.plan), Frames(), Frames()
    open_log(log, manifest.buses).read(everything, 1 << 30)
    described = [f for f in everything if f[1] == 0 and decoder.plan.find_message(0, f[2]) is not None and kind.keep(f)]
    for time_us, bus, can_id, flags, data in described:
        frames.append(time_us, bus, can_id, data, flags=flags)
    seconds = _by_second(frames, described)
    names = [manifest.messages[decoder.plan.find_message(0, f[2]) or 0].name for f in described]
    messages: dict[str, Any] = {}
    for path in paths:
        for message in load_with_cantools(path).messages:
            messages.setdefault(message.name, message)
    slow = _decodable(messages, names, described)
    library = generated_c.build([[messages[name] for name in sorted(set(names))]], folder, kind.by_pgn)
    records, slots = frames.to_bytes()
    unpacked = library.decode(records, slots, len(frames))

    def with_cantools() -> None:
        for message, data in slow:
            message.decode(data, allow_truncated=True)

    for name, batches in (("whole log in one buffer", [frames]), ("1 s batches", seconds)):

        def ours(batches: list[Frames] = batches) -> None:
            for batch in batches:
                decoder.decode_batch(batch, columns)

        own, peer, ratio = pairs(ours, with_cantools, 5, 5)
        yield {
            "figure": f"decode {kind.name}, {name}",
            "ns_per_frame": 1e9 * own / len(frames),
            "frames": len(frames),
            "against": "cantools Message.decode",
            "against_ns_per_frame": 1e9 * peer / len(slow),
            "against_frames": len(slow),
            "times_faster": ratio * len(frames) / len(slow),
            "asked": ASKED,
        }
        own, peer, ratio = pairs(ours, lambda: library.decode(records, slots, len(frames)), 15, 20, 20)
        yield {
            "figure": f"decode {kind.name}, {name}",
            "ns_per_frame": 1e9 * own / len(frames),
            "frames": len(frames),
            "against": "generated C -O3, into structs" + (", found by masked identifiers" if kind.by_pgn else ""),
            "against_ns_per_frame": 1e9 * peer / unpacked,
            "against_frames": unpacked,
            "times_faster": ratio * len(frames) / unpacked,
        }


def _by_second(frames: Frames, rows: list[Frame]) -> list[Frames]:
    batches, start = [], 0
    for place, row in enumerate(rows):
        if row[0] - rows[start][0] >= 1_000_000:
            batches.append(frames.slice(start, place))
            start = place
    return [*batches, frames.slice(start, len(rows))]


def _decodable(messages: dict[str, Any], names: list[str], rows: list[Frame]) -> list[tuple[Any, bytes]]:
    """Message and payload of those of the first frames that cantools decodes at all."""
    found = []
    for name, row in list(zip(names, rows, strict=True))[:SLOW_FRAMES]:
        try:
            messages[name].decode(row[4], allow_truncated=True)
        except Exception:  # of many kinds: undefined multiplexer values, overlapping signals
            continue
        found.append((messages[name], row[4]))
    return found

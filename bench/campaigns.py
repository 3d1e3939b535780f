"""The collector's chain: decode, conditions, reduction, blocks; all but the outbox. In batches as it stores them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import structs

from bench.workload import Workload
from cy_core.frames import Frames
from cy_core.ring import Ring
from edge.campaign import Campaign, SignalRule, compile_campaigns
from edge.collector import READ_WAIT_S, CollectorSettings
from edge.decoder import Decoder
from edge.line import Line
from edge.message import Clock, Coverage
from edge.stream import Batch

BATCH_FRAMES = 8192
ROUNDS = 5
ALL = {"*": SignalRule()}


def figures(load: Workload, folder: Path) -> Iterator[dict[str, Any]]:
    batches = [load.frames.slice(at, at + BATCH_FRAMES) for at in range(0, len(load.frames), BATCH_FRAMES)]
    name, message, _ = max(load.manifest.names(), key=lambda row: row[2].length if not row[2].is_float else 0)
    operand = f"{message.bus}.{name}"
    never = f"rising({operand} + 0 > 1e300)"
    mixed = {f"c{number}": _mixed(number, operand) for number in range(20)}
    quarters = _quarters(load)
    parts = {
        name: structs.replace(campaign, signals=dict.fromkeys(quarters[number // 5], campaign.signals["*"]))
        for number, (name, campaign) in enumerate(mixed.items())
    }
    unlike = {f"c{number}": _mixed(number, operand, 1 + number / 100) for number in range(20)}
    base = _ns(load, batches, {})
    yield _figure("campaigns, none (ring and counters)", base)
    idle = _ns(load, batches, {"idle": Campaign(ALL, when=never, before_s=30, after_s=5)})
    yield {**_figure("campaigns, one event campaign that never fires", idle), "over_none_ns": idle - base}
    yield _figure("campaigns, all signals", _ns(load, batches, {"all": Campaign(ALL)}))
    lines = {"*": SignalRule(filter="curvelog", max_error="0.1%")}
    yield _figure("campaigns, all signals, curvelog 0.1 %", _ns(load, batches, {"all": Campaign(lines)}))
    yield _figure("campaigns, 20 mixed: five kinds, each for a quarter of the messages", _ns(load, batches, parts))
    yield _figure("campaigns, 20 mixed: five kinds, four of each alike, all signals", _ns(load, batches, mixed))
    yield _figure("campaigns, 20 mixed: no two alike, all signals", _ns(load, batches, unlike))
    yield {
        "figure": "campaigns, 20 mixed: from a changed document to live, a full batch of all stored first",
        "ms": _change_ms(load, batches[0], mixed) + 1e3 * READ_WAIT_S,
        "of_which_waiting_at_most_ms": 1e3 * READ_WAIT_S,
        "asked_at_most": 100,
    }
    yield {"figure": "ring, 30 s at 10,000 frames/s", "mb": _ring_mb(load), "asked_at_most": 10}


def _change_ms(load: Workload, held: Frames, campaigns: dict[str, Campaign]) -> float:
    """One of them changes: it is compiled, and what the collector holds at most is stored first."""
    held, best = held.slice(0, CollectorSettings().block_frames), float("inf")
    for _ in range(ROUNDS):
        line = Line(Decoder(load.manifest))
        before, _ = compile_campaigns(campaigns, load.manifest)
        line.select(before, 0)
        changed = {**campaigns, "c0": structs.replace(campaigns["c0"], priority=7)}
        start = time.process_time_ns()
        selections, _ = compile_campaigns(changed, load.manifest, before)
        line.take(Batch(held, Coverage("bench", 0, len(held)), Clock()), line.changed(selections))
        line.select(selections, len(held))
        best = min(best, (time.process_time_ns() - start) / 1e6)
    return best


def _ring_mb(load: Workload) -> float:
    """The recording's frames again and again, 100 us apart; what is in the ring when 30 s are."""
    ring, frames, at = Ring(64 << 20), Frames(), 0
    while at < 300_000:
        frames.clear()
        for _, bus, can_id, flags, data in load.frames.slice(0, 10_000):
            frames.append(100 * at, bus, can_id, data, flags=flags)
            at += 1
        ring.append(frames)
    return float(ring.allocated_bytes / 1e6)


def _quarters(load: Workload) -> list[list[str]]:
    """Globs over the messages that the recording has, in four parts."""
    seen = {(bus, can_id) for _, bus, can_id, _, _ in load.known}
    buses = load.manifest.buses
    globs = [f"{m.bus}.{m.name}.*" for m in load.manifest.messages if (buses.index(m.bus), m.id) in seen]
    return [globs[part::4] for part in range(4)]


def _mixed(number: int, operand: str, scale: float = 1.0) -> Campaign:
    """scale: not 1: a bound, period and window of its own."""
    own = {} if scale == 1.0 else {"max_hold_s": 60 * scale}
    kinds = [
        Campaign({"*": SignalRule(filter="curvelog", max_error=f"{scale}%")}),
        Campaign({"*": SignalRule(filter="change", **own)}),
        Campaign({"*": SignalRule(filter="window", period_s=10 * scale, keep=["min", "max"])}),
        Campaign(ALL, when=f"changed({operand})", before_s=2, after_s=1, cooldown_s=20),
        Campaign(ALL, when=f"rising({operand} + 0 > 1e300)", before_s=10, after_s=5),
    ]
    return kinds[number % len(kinds)]


def _ns(load: Workload, batches: list[Frames], campaigns: dict[str, Campaign]) -> float:
    """CPU time a frame, the best of some rounds."""
    selections, refused = compile_campaigns(campaigns, load.manifest)
    assert not refused, refused
    best = float("inf")
    for _ in range(ROUNDS):
        line, at = Line(Decoder(load.manifest), 64 << 20), 0
        line.select(selections, 0)
        start = time.process_time_ns()
        for batch in batches:
            line.take(Batch(batch, Coverage("bench", at, at + len(batch)), Clock()))
            at += len(batch)
        best = min(best, (time.process_time_ns() - start) / len(load.frames))
    return best


def _figure(name: str, ns: float) -> dict[str, Any]:
    return {"figure": name, "ns_per_frame": ns, "million_frames_per_s": 1e3 / ns}

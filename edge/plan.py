"""`bordnetz plan`: what campaigns would have collected on recordings, through the very code that runs in the vehicle.

    recordings ──► batches, as the collector stores them ──► edge/line ──► records ──► bytes, events, units
                                                                 └─ before and after reduction ──► error by signal

Prices are settings of the caller, never facts. A month has 30 days.
"""

import itertools
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import msgspec

from cy_core.columns import Columns
from cy_core.frames import Frames
from cy_core.ring import Ring
from edge import block
from edge.campaign import Selection
from edge.decoder import Decoder
from edge.errors import InputError
from edge.line import Line
from edge.logs import open_log
from edge.manifest import DecoderManifest, Signal
from edge.message import UNIT_BYTES, Block, Clock, Coverage, Quality
from edge.names import Names
from edge.outbox import NewRecord
from edge.stream import Batch
from edge.summary import Reader, is_summary, named

READ_FRAMES = 32_768
ENVELOPE_BYTES = 200  # of a message, with its topic and properties
DAYS = 30


Samples = list[tuple[int, Any]]  # (time in us, raw value)


class Watch(Protocol):
    """Is told what happens, for a report (edge/plan_trace.py)."""

    def begin(self, first_us: int) -> None: ...
    def frames(self, frames: Frames) -> None: ...
    def event(self, stream: str, time_us: int) -> None: ...
    def piece(self, stream: str, seen: Mapping[int, Samples], kept: Mapping[int, Samples]) -> None: ...
    def summary(self, stream: str, number: int, name: str, rows: Sequence[tuple[int, float]]) -> None: ...


class Usage(msgspec.Struct, frozen=True):
    """What to project to: hours driven a day, vehicles, and prices (0: none is shown)."""

    hours_per_day: float = 1.5
    vehicles: int = 1
    price_per_mb: float = 0.0
    price_per_million_units: float = 0.0
    latency_s: float = 10.0  # of the uplink: what comes in that time shares a message


class SignalPlan(msgspec.Struct):
    """bytes_alone: if nothing else were sent; units: its share of the campaign's.

    max_error and bound are physical; None where nothing bounds them (periods), or nothing was kept.
    """

    bus: str
    signal: str
    filter: str
    samples_seen: int = 0
    samples: int = 0
    bytes_alone: int = 0
    units: float = 0.0
    max_error: float | None = None
    bound: float | None = None


class CampaignPlan(msgspec.Struct):
    campaign: str
    priority: int
    events: list[str] = []
    events_extended: int = 0
    events_over_limit: int = 0
    events_cut: int = 0
    conditions_true: int = 0
    samples_seen: int = 0
    samples: int = 0
    frames: int = 0  # raw
    blocks: int = 0
    bytes: int = 0
    units: int = 0
    mb_per_month: float = 0.0
    units_per_month: float = 0.0
    signals: list[SignalPlan] = []


class Plan(msgspec.Struct):
    """bytes and units of all campaigns together; units are of 4,096 bytes, as IoT Hub meters them."""

    logs: list[str]
    frames: int
    seconds: float
    ring_bytes: int
    campaigns: list[CampaignPlan]
    bytes: int
    units: int
    mb_per_month: float
    units_per_month: float
    fleet_mb_per_month: float
    fleet_units_per_month: float
    cost_per_month: float | None

    @property
    def broken_bounds(self) -> list[str]:
        """Signals whose error is over their bound: there are none, or there is a bug."""
        return [
            f"{campaign.campaign}: {signal.signal}"
            for campaign in self.campaigns
            for signal in campaign.signals
            if signal.bound is not None
            and signal.max_error is not None
            and signal.max_error > signal.bound * (1 + 1e-9)
        ]


def backtest(
    selections: Sequence[Selection],
    manifest: DecoderManifest,
    logs: Sequence[Path],
    usage: Usage,
    durable_s: float = 1.0,
    watch: Watch | None = None,
) -> Plan:
    """Run the campaigns over the recordings. Raises InputError: one cannot be read, or holds no frame."""
    meter = _Meter(selections, manifest, usage, watch)
    frames, seconds, ring_bytes = 0, 0.0, 0
    for path in logs:
        decoder = Decoder(manifest)
        line = Line(decoder, on_columns=meter.columns)
        line.select(selections, 0)
        span = [math.inf, -math.inf]
        count = 0
        for batch in _batches(path, manifest, durable_s):
            if watch is not None and len(batch.frames):
                if not count:
                    watch.begin(batch.frames.first_time_us or 0)
                watch.frames(batch.frames)
            if len(batch.frames):
                span = [min(span[0], batch.frames.first_time_us or 0), max(span[1], batch.frames.last_time_us or 0)]
            meter.take(line, batch)
            count += len(batch.frames)
        if not count:
            raise InputError(path, "holds no frames", "give a recording of a drive")
        frames, seconds = frames + count, seconds + max(0.0, (span[1] - span[0]) / 1e6)
        ring_bytes = max(ring_bytes, line.ring.allocated_bytes)
        meter.add_tallies(line)
    return meter.plan([str(path) for path in logs], frames, seconds, ring_bytes)


def _batches(path: Path, manifest: DecoderManifest, durable_s: float) -> Iterable[Batch]:
    """As the collector cuts a live bus: at durable_s, or when a block is full."""
    log, held = open_log(path, manifest.buses), Ring(64 << 20)
    clock = Clock(quality=Quality.RECORDED)
    at, more = 0, True
    try:
        while more or at < held.end:
            while more and held.end - at < READ_FRAMES:
                piece = Frames()
                more = log.read(piece, READ_FRAMES)
                held.append(piece)
            if at == held.end:
                break
            end = min(held.find(at, held.time_us(at) + round(durable_s * 1e6)), at + 8192)
            is_last = not more and end == held.end
            yield Batch(held.cut(at, end), Coverage(str(path), at, end), clock, last=is_last)
            at = end
    finally:
        log.close()


class _Meter:
    """Adds up what comes out of the line."""

    def __init__(
        self, selections: Sequence[Selection], manifest: DecoderManifest, usage: Usage, watch: Watch | None
    ) -> None:
        names = Names(manifest)
        self._usage, self._watch = usage, watch
        self._signals = [signal for _, _, signal in names.signals]
        self._plans = {s.stream: CampaignPlan(s.stream, s.priority) for s in selections}
        self._of_signal: dict[str, dict[int, SignalPlan]] = {}
        self._rules: dict[str, list[tuple[str, float]]] = {}
        self._reader = Reader(manifest)
        for selection in selections:
            rules = selection.rules or [("every" if keep else "drop", 0.0) for keep in selection.keep]
            self._rules[selection.stream] = [(rule[0], rule[1]) for rule in rules]
            summed = {one.place: one.kinds for one in selection.summaries}
            self._of_signal[selection.stream] = {
                number: SignalPlan(
                    names.signals[number][1].bus,
                    names.signals[number][0],
                    _filter(str(rules[number][0]), summed.get(number, 0)),
                    bound=_physical(rules[number], self._signals[number]),
                )
                for number in range(len(rules))
                if selection.keep[number]
            }
        self._held: dict[tuple[str, int], float] = {}  # last kept value of signals sent on change
        self._periods: dict[str, dict[int, int]] = {name: {} for name in [*self._plans, ""]}

    def take(self, line: Line, batch: Batch) -> None:
        before = {name: stream.tally.events for name, stream in line.streams.items()}
        records = line.take(batch)
        period = int((batch.frames.last_time_us or 0) / 1e6 / self._usage.latency_s)
        for record in records:
            self._count_summaries(record)
            for name in (record.stream, ""):
                periods = self._periods[name]
                periods[period] = periods.get(period, ENVELOPE_BYTES) + len(record.body)
        for name, stream in line.streams.items():
            fresh = stream.tally.events - before[name]
            began = list(stream.began)[-fresh:] if fresh else []
            self._plans[name].events += [_when(at) for at in began]
            if self._watch is not None:
                for at in began:
                    self._watch.event(name, at)

    def _count_summaries(self, record: NewRecord) -> None:
        data = Block.decode(record.body).data
        if not is_summary(data):
            return
        summaries, columns = self._reader.read(data)
        plans, at = self._of_signal[record.stream], 0
        found = by_signal(columns, range(summaries.plan.signal_count)) if self._watch is not None else {}
        for place, message in zip(summaries.places, summaries.manifest.messages, strict=True):
            for number, signal in enumerate(message.signals, start=at):
                if self._watch is not None and number in found:
                    rows = [(time_us, raw * float(signal.factor)) for time_us, raw in found[number]]
                    self._watch.summary(record.stream, place, signal.name, rows)
            mask = bytearray(summaries.plan.signal_count)
            mask[at : at + len(message.signals)] = b"\1" * len(message.signals)
            at += len(message.signals)
            if values := columns.samples(mask):
                plans[place].samples += values
                plans[place].bytes_alone += len(block.encode(columns, mask))

    def columns(self, stream: str, source: Columns, kept: Columns) -> None:
        """What a reduction made of a block's samples."""
        plans, rules = self._of_signal[stream], self._rules[stream]
        before, after = by_signal(source, plans), by_signal(kept, plans)
        if self._watch is not None:
            self._watch.piece(stream, before, after)
        for number, samples in before.items():
            plan, own = plans[number], after.get(number, [])
            plan.samples_seen += len(samples)
            kind, bound = rules[number]
            if kind in ("drop", "window") or (bound == 0 and kind != "change"):
                continue
            error = self._error(stream, number, kind, samples, own) * abs(float(self._signals[number].factor))
            plan.max_error = max(plan.max_error or 0.0, error)
        for number, own in after.items():
            plan = plans[number]
            plan.samples += len(own)
            mask = bytearray(len(self._signals))
            mask[number] = 1
            plan.bytes_alone += len(block.encode(kept, mask))

    def _error(self, stream: str, number: int, kind: str, samples: Samples, kept: Samples) -> float:
        """The largest distance, in raw units, of what was and what the cloud will see."""
        if kind == "every":
            return max((_distance(a[1], b[1]) for a, b in zip(samples, kept, strict=True)), default=0.0)
        if kind == "curvelog":
            return _line_error(sorted(samples), sorted(kept))
        worst, place, kept = 0.0, 0, sorted(kept)
        last = self._held.get((stream, number))
        for time_us, raw in sorted(samples):
            while place < len(kept) and kept[place][0] <= time_us:
                last, place = kept[place][1], place + 1
            if last is not None:
                worst = max(worst, _distance(raw, last))
        if last is not None:
            self._held[stream, number] = last
        return worst

    def add_tallies(self, line: Line) -> None:
        for name, stream in line.streams.items():
            plan, tally = self._plans[name], stream.tally
            plan.events_extended += tally.extended
            plan.events_over_limit += tally.over_limit
            plan.events_cut += tally.cut
            plan.samples_seen += tally.samples_seen
            plan.samples += tally.samples
            plan.frames += tally.frames
            plan.blocks += tally.blocks
            plan.bytes += tally.bytes
            plan.conditions_true += stream.condition.true if stream.condition is not None else 0

    def plan(self, logs: list[str], frames: int, seconds: float, ring_bytes: int) -> Plan:
        monthly = self._usage.hours_per_day * 3600 * DAYS / max(seconds, 1e-6)
        for name, plan in self._plans.items():
            plan.units = _units(self._periods[name])
            plan.mb_per_month, plan.units_per_month = plan.bytes * monthly / 1e6, plan.units * monthly
            plan.signals = sorted(self._of_signal[name].values(), key=lambda signal: -signal.bytes_alone)
            whole = sum(signal.bytes_alone for signal in plan.signals)
            for signal in plan.signals:
                signal.units = plan.units * signal.bytes_alone / max(whole, 1)
        plans = list(self._plans.values())
        total, units = sum(plan.bytes for plan in plans), _units(self._periods[""])
        mb, vehicles = total * monthly / 1e6, self._usage.vehicles
        prices = self._usage.price_per_mb, self._usage.price_per_million_units
        cost = vehicles * (mb * prices[0] + units * monthly / 1e6 * prices[1]) if any(prices) else None
        return Plan(
            logs, frames, seconds, ring_bytes, plans, total, units, mb, units * monthly,
            mb * vehicles, units * monthly * vehicles, cost,
        )  # fmt: skip


def by_signal(columns: Columns, wanted: Container[int]) -> dict[int, Samples]:
    """Samples with their raw values, by the number of the signal in the manifest."""
    found: dict[int, Samples] = {}
    firsts = list(itertools.accumulate((len(m.signals) for m in columns.plan.manifest.messages), initial=0))
    for group in columns.groups():
        times = group.times.tolist()
        for index, form, values in group.columns:
            number = firsts[group.message] + index
            if number in wanted:
                raws = list(_cast(values, form)) if form != "e" else _halves(values)
                pairs = zip(times, raws * len(times) if len(raws) == 1 else raws, strict=False)
                found.setdefault(number, []).extend(pairs)
    return found


def _units(periods: Mapping[int, int]) -> int:
    return sum(-(-size // UNIT_BYTES) for size in periods.values())


def _filter(kind: str, summed: int) -> str:
    return ", ".join([*([] if summed and kind == "drop" else [kind]), *([named(summed)] if summed else [])])


def _physical(rule: Sequence[Any], signal: Signal) -> float | None:
    return None if rule[0] in ("drop", "window") else float(rule[1]) * abs(float(signal.factor))


def _distance(a: Any, b: Any) -> float:
    if a == b or (a != a and b != b):
        return 0.0
    return abs(float(a - b))


def _line_error(samples: Samples, kept: Samples) -> float:
    """Samples and kept are in the order of time; exact, in rational numbers."""
    worst, place = Fraction(0), 0
    for time_us, raw in samples:
        while place + 1 < len(kept) and kept[place + 1][0] < time_us:
            place += 1
        t0, v0 = kept[place]
        t1, v1 = kept[min(place + 1, len(kept) - 1)]
        if time_us in (t0, t1) or t1 <= t0:
            continue
        if v0 == v1:
            worst = max(worst, abs(Fraction(raw) - Fraction(v0)))
            continue
        line = Fraction(v0) + (Fraction(v1) - Fraction(v0)) * (time_us - t0) / (t1 - t0)
        worst = max(worst, abs(Fraction(raw) - line))
    return float(worst)


def _cast(values: memoryview, form: str) -> Iterable[Any]:
    return values.cast(form)  # type: ignore[call-overload, no-any-return]


def _halves(values: memoryview) -> list[float]:
    import struct

    return [value for (value,) in struct.iter_unpack("<e", values)]


def _when(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""What a backtest saw, few enough points of it to be drawn: what was on the bus, and what the cloud gets.

Memory is bounded: of each stretch of time a curve keeps its first, lowest, highest and last point; only the signals
that cost most are followed.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cy_core.frames import Frames
from edge.campaign import Selection
from edge.decoder import Decoder
from edge.manifest import DecoderManifest, Signal
from edge.names import Names
from edge.plan import CampaignPlan, Plan, Samples, SignalPlan, by_signal

MOST_DRAWN = 8  # signals of a campaign
STRETCHES = 400
APART_S = 2.0  # collected stretches that are further apart are drawn apart


class Point(NamedTuple):
    at_s: float
    value: float


class Curve:
    """Points in the order of time, thinned; a part ends where nothing is to be drawn to the next."""

    def __init__(self, stretch_s: float) -> None:
        self._stretch_s = stretch_s
        self._part = 0
        self._stretches: dict[tuple[int, int], list[Point]] = {}  # by part and time: first, lowest, highest, last

    def add(self, point: Point) -> None:
        if point.value != point.value or abs(point.value) == float("inf"):
            return
        key = self._part, int(point.at_s / self._stretch_s)
        found = self._stretches.get(key)
        if found is None:
            self._stretches[key] = [point] * 4
            return
        found[1] = min(found[1], point, key=lambda one: one.value)
        found[2] = max(found[2], point, key=lambda one: one.value)
        found[3] = point

    def end_part(self) -> None:
        self._part += 1

    def parts(self) -> list[list[Point]]:
        parts: dict[int, list[Point]] = {}
        for (part, _), points in sorted(self._stretches.items()):
            parts.setdefault(part, []).extend(sorted(set(points)))
        return list(parts.values())


class Trace:
    """Of one signal in one campaign. dwell: seconds in each class; means: at the beginning of each period."""

    def __init__(self, plan: SignalPlan, signal: Signal, stretch_s: float) -> None:
        self.plan = plan
        self.signal = signal
        self.seen, self.kept, self.means = Curve(stretch_s), Curve(stretch_s), Curve(stretch_s)
        self.dwell: dict[str, float] = {}

    def point(self, at_s: float, raw: float) -> Point:
        return Point(at_s, float(raw) * float(self.signal.factor) + float(self.signal.offset))


class CampaignTrace:
    """spans: what was collected, in seconds; triggers: times of events."""

    def __init__(self, plan: CampaignPlan, is_event: bool) -> None:
        self.plan = plan
        self.is_event = is_event
        self.signals: dict[int, Trace] = {}
        self.triggers: list[float] = []
        self.spans: list[list[float]] = []


class Traces:
    """A watch of edge.plan.backtest, for a second run over the same recordings. Recordings lie one after the other."""

    def __init__(self, plan: Plan, selections: Sequence[Selection], manifest: DecoderManifest) -> None:
        self.plan = plan
        self.seconds = max(plan.seconds, 1e-6)
        self.starts: list[float] = []  # of the recordings
        self.campaigns: dict[str, CampaignTrace] = {}
        self._decoder = Decoder(manifest)
        self._offset_us, self._last_us = 0, 0
        names = Names(manifest)
        events = {selection.stream: selection.is_event for selection in selections}
        for of_campaign in plan.campaigns:
            trace = self.campaigns[of_campaign.campaign] = CampaignTrace(of_campaign, events[of_campaign.campaign])
            for of_signal in [signal for signal in of_campaign.signals if signal.samples][:MOST_DRAWN]:
                [number] = names.find(f"{of_signal.bus}.{of_signal.signal}")[:1]
                trace.signals[number] = Trace(of_signal, names.signals[number][2], self.seconds / STRETCHES)
        self._wanted = {number for trace in self.campaigns.values() for number in trace.signals}

    def _at_s(self, time_us: int) -> float:
        return (time_us - self._offset_us) / 1e6

    def begin(self, first_us: int) -> None:
        """A recording begins."""
        at_us = self._last_us - self._offset_us if self.starts else 0
        self._offset_us, self._last_us = first_us - at_us, first_us
        self.starts.append(at_us / 1e6)
        for trace in self.campaigns.values():
            for own in trace.signals.values():
                own.seen.end_part()

    def frames(self, frames: Frames) -> None:
        """Everything that was on the bus."""
        self._last_us = max(self._last_us, frames.last_time_us or 0)
        found = by_signal(self._decoder.decode_batch(frames), self._wanted)
        for trace in self.campaigns.values():
            for number, own in trace.signals.items():
                for time_us, raw in sorted(found.get(number, ())):
                    own.seen.add(own.point(self._at_s(time_us), raw))

    def event(self, stream: str, time_us: int) -> None:
        self.campaigns[stream].triggers.append(self._at_s(time_us))

    def piece(self, stream: str, seen: Mapping[int, Samples], kept: Mapping[int, Samples]) -> None:
        """What a campaign looked at, and what it made of it."""
        trace = self.campaigns[stream]
        times = [sample[0] for samples in seen.values() for sample in samples]
        if times:
            first_s, last_s = self._at_s(min(times)), self._at_s(max(times))
            if trace.spans and first_s - trace.spans[-1][1] <= APART_S:
                trace.spans[-1][1] = max(trace.spans[-1][1], last_s)
            else:
                trace.spans.append([first_s, last_s])
                for own in trace.signals.values() if trace.is_event else ():
                    own.kept.end_part()
        for number, own in trace.signals.items():
            for time_us, raw in sorted(kept.get(number, ())):
                own.kept.add(own.point(self._at_s(time_us), raw))

    def summary(self, stream: str, number: int, name: str, rows: Sequence[tuple[int, float]]) -> None:
        """Physical values of a summary, by the beginning of their periods."""
        own = self.campaigns[stream].signals.get(number)
        kind = name.partition("#")[2]
        if own is not None and kind == "mean":
            for time_us, value in rows:
                own.means.add(Point(max(0.0, self._at_s(time_us)), value))
        elif own is not None and kind.startswith("dwell"):
            own.dwell[kind[5:]] = own.dwell.get(kind[5:], 0.0) + sum(value for _, value in rows)

"""One campaign at work: of each batch, which frames it keeps.

A campaign without a condition keeps what it selects of each batch. One with a condition keeps the frames of its
events: from before_s before a hit to after_s behind it, in the order of arrival, to the frame. A hit while an event is
under way makes it longer. No frame goes into a stream twice.
"""

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from cy_core.frames import Frames
from cy_core.reduce import Reducer
from cy_core.ring import Ring
from cy_core.traffic import Traffic
from edge.campaign import Selection
from edge.decoder import Decoder
from edge.message import Clock, Counters, Coverage

if TYPE_CHECKING:
    from edge.summary import SummingReducer

BEGAN_KEPT = 100
DAY_US = 86_400_000_000


class Tally(msgspec.Struct):
    """What became of a campaign's frames and samples, since it was started."""

    events: int = 0
    extended: int = 0  # hits in an event under way: it was made longer
    over_limit: int = 0  # hits beyond max_events_per_day
    out_of_time: int = 0  # hits before start or after end
    cut: int = 0  # events of which a part was not there any more
    samples_seen: int = 0
    samples: int = 0
    frames: int = 0  # raw
    blocks: int = 0
    bytes: int = 0


class Place(msgspec.Struct, frozen=True):
    """Of a stream, as stored with the source's cursor: it has looked at all before first."""

    first: int
    missing: int = 0
    until_us: int | None = None  # an event under way ends then


class Batch(msgspec.Struct, frozen=True):
    """Frames with what is known of them; last: nothing follows, so open periods are given out."""

    frames: Frames
    coverage: Coverage
    clock: Clock
    unparsed_lines: int = 0
    overflowed: int = 0
    last: bool = False


class Stream:
    """One campaign at work. kind: streams of the same kind keep the same of the same frames."""

    def __init__(self, selection: Selection, decoder: Decoder, place: Place, position: int) -> None:
        campaign = selection.campaign
        self.selection = selection
        self.tally = Tally()
        self.condition = (
            selection.program.condition(decoder.plan, round(campaign.cooldown_s * 1e6)) if selection.program else None
        )
        self.reducer = _reducer(selection, decoder)
        self.first, self.missing, self.until_us = place.first, place.missing, place.until_us
        self.looked = position  # frames of the source before this one have been looked at
        self.counters = Counters()
        self.before_us, self.after_us = round(campaign.before_s * 1e6), round(campaign.after_s * 1e6)
        self.collected = 0  # frames of the ring before this one are in the stream
        self.day, self.day_events = 0, 0
        self.began: deque[int] = deque(maxlen=BEGAN_KEPT)  # times of the last events
        self.done = False  # of a snapshot: it has been taken
        self.kind = 0
        self.picker = selection.raw.picker() if selection.raw is not None else None
        self.coding: dict[str, Any] = {
            "kept_steps": selection.steps,
            "tick_us": campaign.tick_us,
            "tolerance_us": round(campaign.time_tolerance_s * 1e6),
        }
        self.picked = -1  # what the picker knows reaches up to here

    @property
    def place(self) -> Place:
        return Place(self.first, self.missing, self.until_us)

    def pieces(self, ring: Ring, batch: Batch, traffic: Traffic) -> list[tuple[int, int, bool]]:
        """(first frame, end, whether an event ends there) of what to keep, by numbers of the ring."""
        start = ring.end - len(batch.frames)
        if not self.selection.is_event:
            return self._in_time(ring, start, batch)
        if self.condition is not None:
            hits = self.condition.run(batch.frames, traffic)
        else:
            hits = [len(batch.frames) - 1] if len(batch.frames) and not self.tally.events else []
        return self._events(ring, start, [start + hit for hit in hits], batch.clock.utc_offset_us)

    def _in_time(self, ring: Ring, start: int, batch: Batch) -> list[tuple[int, int, bool]]:
        end, offset_us = ring.end, batch.clock.utc_offset_us
        if self.selection.start_us is not None:
            start = ring.find(start, self.selection.start_us - offset_us)
        if self.selection.end_us is not None:
            end = ring.find(start, self.selection.end_us - offset_us)
        return [(start, end, batch.last)] if start < end or batch.last else []

    def _events(self, ring: Ring, start: int, hits: list[int], offset_us: int) -> list[tuple[int, int, bool]]:
        pieces: list[tuple[int, int, bool]] = []
        behind = start  # no frame before this one can end the event
        for number in hits:
            time_us = ring.time_us(number)
            if self.until_us is not None:
                end = ring.find(behind, self.until_us + 1)
                if end > number:
                    self.until_us, behind = max(self.until_us, time_us + self.after_us), number
                    self.tally.extended += 1
                    continue
                pieces.append((start, end, True))
                self.until_us, self.collected = None, end
            if self._may_begin(time_us + offset_us):
                start, behind = self._begin(ring, time_us), number
        if self.until_us is not None:
            end = ring.find(behind, self.until_us + 1)
            pieces.append((start, end, end < ring.end))
            self.collected = end
            if end < ring.end:
                self.until_us = None
        return pieces

    def _begin(self, ring: Ring, time_us: int) -> int:
        """The first frame of an event at this time."""
        self.until_us = time_us + self.after_us
        self.tally.events += 1
        self.began.append(time_us)
        oldest_us = ring.first_time_us
        start = ring.find(ring.first, time_us - self.before_us)
        if ring.crowded and start == ring.first and oldest_us is not None and oldest_us > time_us - self.before_us:
            self.tally.cut += 1
        return max(start, self.collected)

    def _may_begin(self, utc_us: int) -> bool:
        start_us, end_us = self.selection.start_us, self.selection.end_us
        if (start_us is not None and utc_us < start_us) or (end_us is not None and utc_us >= end_us):
            self.tally.out_of_time += 1
            return False
        if utc_us // DAY_US != self.day:
            self.day, self.day_events = utc_us // DAY_US, 0
        limit = self.selection.campaign.max_events_per_day
        if limit is not None and self.day_events >= limit:
            self.tally.over_limit += 1
            return False
        self.day_events += 1
        return True


def _reducer(selection: Selection, decoder: Decoder) -> "Reducer | SummingReducer | None":
    if selection.rules is None:
        return None
    if not selection.summaries:
        return Reducer(decoder.plan, selection.rules)
    from edge.summary import SummingReducer  # here: not every vehicle needs it

    return SummingReducer(decoder.plan, selection.rules, selection.summaries)

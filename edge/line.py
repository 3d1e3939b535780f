"""From a batch of frames to records: what every campaign keeps of it.

    frames ──► traffic ──► conditions ──► hits ──┐
       ├────► ring ◄──────── windows ◄───────────┘
       └────► decode ──► reduce ──► blocks, one stream for each campaign

Which frames a stream keeps: edge/stream.py. It says which frames of the source it has looked at; frames without
anything to keep count for its next block. The state of campaigns that did not change is carried over when others do.
Campaigns that keep the same of the same frames share the work: each gets a record of its own with the block that was
made once.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

import msgspec

from cy_core.columns import Columns
from cy_core.frames import Frames
from cy_core.reduce import Reducer
from cy_core.ring import Ring
from cy_core.traffic import Traffic
from edge import block
from edge.campaign import Selection
from edge.decoder import Decoder
from edge.message import Block, Counters, Coverage
from edge.outbox import MAX_BODY_BYTES, NewRecord
from edge.stream import Batch, Place, Stream
from edge.table import Table

if TYPE_CHECKING:
    pass

MAX_DATA_BYTES = MAX_BODY_BYTES - 2048  # the rest of a Block is smaller
MOST_FRAMES = 1 << 16  # that are looked at for one block
DISORDER_US = 1_000_000  # how far back in time a frame may come late


class Kept(msgspec.Struct, gc=False):
    """What was made of frames start..end-1: blocks with their samples and raw frames; samples before reduction,
    counters, the reducer."""

    blocks: list[tuple[bytes, int, int]]
    seen: int
    counters: Counters
    before: bytes
    after: bytes


class Line:
    """Runs the campaigns. on_columns(stream name, before, after) sees what a reduction did, for a backtest.

    table: the model table that blocks are made with; it may be another one for the next batch.
    """

    def __init__(
        self,
        decoder: Decoder,
        ring_bytes: int = 16 << 20,
        on_columns: Callable[[str, Columns, Columns], None] | None = None,
    ) -> None:
        self.decoder = decoder
        self.traffic = Traffic(decoder.plan)
        self.ring = Ring(ring_bytes)
        self.streams: dict[str, Stream] = {}
        self.ring_s = 0.0
        self.samples = 0  # that the last batch gave
        self.assembler = decoder.assembler()
        self._messages = Frames()  # that the batch's frames complete
        self._shared: set[int] = set()  # kinds of more than one stream
        self._kept: dict[tuple[int, int, int, bool], Kept] = {}  # by kind, start, end, ends
        self._manifest = bytes.fromhex(decoder.manifest.hash)
        self.signals_seen = bytearray(decoder.plan.signal_count)  # a byte for each; 1 once it was there
        self._decoded = False
        self._whole, self._part, self._reduced, self._nothing = (Columns(decoder.plan) for _ in range(4))
        self.table = Table()
        self._on_columns = on_columns

    def select(self, selections: Iterable[Selection], position: int, places: dict[str, Place] | None = None) -> None:
        """Run these campaigns from source position on; those that are the same go on as they were.

        places: where streams stopped before a restart.
        """
        kept: dict[str, Stream] = {}
        for selection in selections:
            stream = self.streams.get(selection.stream)
            if stream is None or stream.selection != selection:
                place = (places or {}).get(selection.stream, Place(position))
                until_us = place.until_us if selection.is_event else None
                place = Place(min(place.first, position), place.missing, until_us)
                stream = Stream(selection, self.decoder, place, position)
                stream.collected = self.ring.end if until_us is not None else 0
            kept[selection.stream] = stream
        self.streams = kept
        kinds: dict[object, int] = {}
        for name, stream in kept.items():
            selection = stream.selection
            times = selection.campaign.tick_us, selection.campaign.time_tolerance_s
            kind = (selection.keep, selection.rules, selection.summaries, times) if stream.picker is None else name
            stream.kind = kinds.setdefault(kind, len(kinds))
        counts = Counter(stream.kind for stream in kept.values())
        self._shared = {kind for kind, count in counts.items() if count > 1} if self._on_columns is None else set()

    def changed(self, selections: Iterable[Selection]) -> set[str]:
        """Streams that select() would end."""
        same = {selection.stream: selection for selection in selections}
        return {name for name, stream in self.streams.items() if same.get(name) != stream.selection}

    def take(self, batch: Batch, ending: Collection[str] = ()) -> list[NewRecord]:
        """The records of a batch; streams in ending give out what they still hold."""
        self.samples = 0
        self._messages.clear()
        self.assembler.assemble(batch.frames, self._messages)
        self.traffic.note(batch.frames, self.assembler)
        self.ring.append(batch.frames)
        self._decoded = False
        self._kept.clear()
        records: list[NewRecord] = []
        for name, stream in self.streams.items():
            last = batch.last or name in ending
            own = msgspec.structs.replace(batch, last=last) if last != batch.last else batch
            records += self._stream_records(stream, own)
        for name in [name for name, stream in self.streams.items() if stream.selection.is_snapshot and stream.done]:
            del self.streams[name]
        self.ring.trim(self.traffic.clock_us - self._needed_us - DISORDER_US)
        return records

    @property
    def _needed_us(self) -> int:
        return max([round(self.ring_s * 1e6), *(stream.before_us for stream in self.streams.values())])

    def _stream_records(self, stream: Stream, batch: Batch) -> list[NewRecord]:
        stream.missing += batch.coverage.missing
        unseen = batch.coverage.first - batch.coverage.missing - stream.looked
        if batch.coverage.first < stream.first:  # a live source that starts to count anew
            stream.first = batch.coverage.first
        elif unseen > 0:  # nobody says that these were lost: they were on the bus before we listened
            stream.first += unseen
        stream.looked = batch.coverage.end
        pieces = stream.pieces(self.ring, batch, self.traffic)
        stream.counters = _plus(
            stream.counters,
            Counters(unparsed_lines=batch.unparsed_lines, overflowed_frames=batch.overflowed),
        )
        if batch.last and stream.until_us is not None and stream.until_us > self.traffic.clock_us:
            stream.tally.cut += 1
        records: list[NewRecord] = []
        for number, (start, end, ends) in enumerate(pieces):
            covers = batch.coverage.end if number == len(pieces) - 1 else batch.coverage.end - (self.ring.end - end)
            records += self._piece(stream, batch, start, end, covers, ends or batch.last)
            if ends and stream.reducer is not None:
                stream.reducer.forget()
        stream.done |= bool(stream.tally.events) and stream.until_us is None
        return records

    def _piece(self, stream: Stream, batch: Batch, start: int, end: int, covers: int, ends: bool) -> list[NewRecord]:
        """A block of frames start..end-1; in halves where the outbox would not take the whole."""
        before = stream.reducer.save() if stream.reducer is not None else b""
        sessions = dict(stream.picker.sessions) if stream.picker is not None else {}
        picked = stream.picked
        kept = self._keep(stream, batch, start, end, ends, before) if end - start <= MOST_FRAMES else None
        if kept is None or (end - start > 1 and any(len(data) > MAX_DATA_BYTES for data, _, _ in kept.blocks)):
            if stream.reducer is not None:
                stream.reducer.restore(before)
            if stream.picker is not None:
                stream.picker.restore(sessions)
                stream.picked = picked
            middle = (start + end) // 2
            halfway = max(stream.first, covers - (end - middle))
            return self._piece(stream, batch, start, middle, halfway, False) + self._piece(
                stream, batch, middle, end, covers, ends
            )
        stream.tally.samples_seen += kept.seen
        stream.counters = _plus(stream.counters, kept.counters)
        blocks = kept.blocks
        if not blocks and batch.last and covers > stream.first:  # says that nothing was there
            blocks = [(block.encode(self._nothing), 0, 0)]
        return [self._record(stream, batch, *made, covers) for made in blocks]  # the first covers the frames

    def _keep(self, stream: Stream, batch: Batch, start: int, end: int, ends: bool, before: bytes) -> Kept:
        """What the stream keeps of frames start..end-1, made once for all streams of its kind that stand alike."""
        selection, reducer = stream.selection, stream.reducer
        place = stream.kind, start, end, ends
        found = self._kept.get(place)
        if found is not None and found.before == before:
            if reducer is not None:
                reducer.restore(found.after)
            return found
        blocks: list[tuple[bytes, int, int]] = []
        seen, counters = 0, Counters()
        if any(selection.keep):
            source = self._decode(batch, start, end)
            columns, keep = source, None
            seen = samples = source.samples(selection.keep)
            if reducer is None:
                keep = selection.keep
            else:
                now_us = self.traffic.clock_us if end == self.ring.end else self.ring.time_us(end - 1)
                columns, samples = self._reduced, reducer.reduce(source, self._reduced, now_us, ends)
            summed = [] if reducer is None or isinstance(reducer, Reducer) else reducer.summaries(MAX_DATA_BYTES)
            counters = _counters(source, samples + sum(values for _, values in summed))
            if samples:
                blocks.append((block.encode(columns, keep, table=self.table, **stream.coding), samples, 0))
            if self._on_columns is not None and all(len(data) <= MAX_DATA_BYTES for data, _, _ in blocks):
                self._on_columns(selection.stream, source, columns)
            blocks += [(data, values, 0) for data, values in summed]
        if stream.picker is not None:
            blocks += self._raw(stream, batch, start, end)
        shared = stream.kind in self._shared
        after = reducer.save() if shared and reducer is not None else b""
        kept = Kept(blocks, seen, counters, before, after)
        if shared:
            self._kept[place] = kept
        return kept

    def _raw(self, stream: Stream, batch: Batch, start: int, end: int) -> list[tuple[bytes, int, int]]:
        """The frames that the stream names, bit for bit."""
        assert stream.picker is not None
        if start != stream.picked:
            stream.picker.restore({})
        stream.picked = end
        frames = Frames()
        count = stream.picker.pick(self._frames(batch, start, end), frames)
        if not count:
            return []
        buses, tick_us = self.decoder.manifest.buses, stream.selection.campaign.tick_us
        data = block.encode_frames(frames, buses, self.table, tick_us)
        return [(data, 0, count)]

    def _record(self, stream: Stream, batch: Batch, data: bytes, samples: int, frames: int, covers: int) -> NewRecord:
        # Missing frames lie before the others, wherever between two blocks they were lost.
        first = min(stream.first + stream.missing, covers)
        coverage = Coverage(batch.coverage.source, first, covers, stream.missing)
        body = Block(data, batch.clock, coverage, stream.counters).encode()
        stream.tally.samples += samples
        stream.tally.frames += frames
        self.samples += samples
        stream.tally.blocks += 1
        stream.tally.bytes += len(body)
        stream.first, stream.missing, stream.counters = covers, 0, Counters()
        of = stream.selection
        return NewRecord(of.priority, of.stream, self._manifest, body, of.campaign.ttl_s)

    def _frames(self, batch: Batch, start: int, end: int) -> Frames:
        """Frames start..end-1, by numbers of the ring."""
        is_whole = (start, end) == (self.ring.end - len(batch.frames), self.ring.end)
        return batch.frames if is_whole else self.ring.cut(start, end)

    def _decode(self, batch: Batch, start: int, end: int) -> Columns:
        """Frames start..end-1; the batch itself only once, for all streams."""
        frames = self._frames(batch, start, end)
        if frames is not batch.frames:
            return self.decoder.decode_batch(frames, self._part, self._assembled(start, end))
        if not self._decoded:
            self.decoder.decode_batch(batch.frames, self._whole, self._messages)
            self._decoded = True
            self._whole.mark(self.signals_seen)
        return self._whole

    def _assembled(self, start: int, end: int) -> Frames | None:
        """The messages that frames start..end-1 complete; they may have begun as far back as the ring goes."""
        if not self.decoder.plan.has_segments:
            return None
        assembler, messages = self.decoder.assembler(), Frames()
        assembler.assemble(self.ring.cut(self.ring.first, start), messages)
        messages.clear()
        assembler.assemble(self.ring.cut(start, end), messages)
        return messages

    @property
    def latency_s(self) -> float:
        """The least that a campaign asks for."""
        asked = [stream.selection.campaign.latency_s for stream in self.streams.values()]
        return min((latency_s for latency_s in asked if latency_s is not None), default=math.inf)


def _counters(columns: Columns, samples: int) -> Counters:
    return Counters(
        samples=samples,
        unknown_frames=columns.unknown_frames,
        short_frames=columns.short_frames,
        remote_frames=columns.remote_frames,
        error_frames=columns.error_frames,
    )


def _plus(a: Counters, b: Counters) -> Counters:
    return Counters(*(x + y for x, y in zip(msgspec.structs.astuple(a), msgspec.structs.astuple(b), strict=True)))

"""The collector: frames of a source through the campaigns (edge/line.py) into the outbox.

    source ──read──► frames ──line.take──► records ──append──► outbox
                       │                                 │
                       └ the source's cursor, and where each stream stands ┘ one transaction

A block is stored at the latest durable_s (or a campaign's latency_s) after its first frame came: that much of a live
bus is what a kill can cost, and the next block says how many frames are missing. A replay goes on from the cursor
that was stored together with its data, so a kill costs it nothing and gives nothing twice. An event that was under
way at a kill goes on after it, if the clock is still that of the same boot. A live source is read without a campaign
too: the doctor and a snapshot then know the buses, and the first campaign begins with the frames of its time.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Annotated

import msgspec

from cy_core.frames import Frames
from edge.campaign import Campaign, Selection
from edge.decoder import Decoder
from edge.errors import OutboxError
from edge.line import Line
from edge.message import Coverage
from edge.outbox import NewRecord, Outbox
from edge.reference import Reference
from edge.source import Source
from edge.stream import Batch, Place

log = logging.getLogger(__name__)

READ_WAIT_S = 0.05  # the longest the loop is deaf to settings and to stopping
RETRY_S = 1.0
CURSOR_S = 10.0  # how often it is stored while there is nothing else to store


class CollectorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The collector's twin, and its defaults.

    document: where more campaigns are (edge/document.py); durable_s: how long a frame of a live bus may wait to be
    stored; block_frames: the most in one block; ring_s: how far back a snapshot reaches at least (campaigns ask by
    before_s); ring_bytes: the most memory for that. table: the SHA-256 of the model table that blocks are made with.
    """

    campaigns: dict[str, Campaign] = {}
    document: Reference | None = None
    durable_s: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 1.0
    block_frames: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 4096
    ring_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    ring_bytes: Annotated[int, msgspec.Meta(ge=65536, le=1 << 30)] = 16 << 20
    table: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""


class Cursor(msgspec.Struct, frozen=True):
    """What the outbox keeps of a source: its own cursor, where each stream stands, messages that were half there."""

    source: bytes
    boot: bytes
    streams: dict[str, Place] = {}
    sessions: bytes = b""


class Totals(msgspec.Struct):
    """Since the process started."""

    frames: int = 0
    samples: int = 0
    blocks: int = 0
    bytes: int = 0
    unknown_frames: int = 0
    missing_frames: int = 0
    cut_events: int = 0


class Collector:
    """Runs one source into one outbox. select() may be called between steps, from the thread that runs it."""

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        outbox: Outbox,
        on_first: Callable[[], None] = lambda: None,
        ring_bytes: int = 16 << 20,
    ) -> None:
        """on_first is called once, when the first block has been stored."""
        self.totals = Totals()
        self.finished = False
        self.problem = ""  # why nothing is stored at the moment
        self.source = source
        self.line = Line(decoder, ring_bytes)
        self._on_first = on_first
        self._outbox = outbox
        self._durable_s = 1.0
        self._block_frames = 4096
        self._frames = Frames()
        self._since = self._cursor_stored = 0.0
        self._places = self._resume()
        self._overflowed = source.overflowed
        self._unparsed = source.unparsed_lines

    def _resume(self) -> dict[str, Place]:
        """Go on where the outbox says that this source was; where the streams were."""
        stored = self._outbox.cursor(self.source.name)
        if stored is None:
            return {}
        cursor = msgspec.json.decode(stored, type=Cursor)
        self.source.resume(cursor.source)
        if cursor.boot == self.source.clock.boot_id:
            try:
                self.line.assembler.restore(cursor.sessions)
            except ValueError as error:
                log.warning("messages in several frames that were half there are lost: %s", error)
            return cursor.streams
        # Times of another boot say nothing here: events that were under way end, and are counted as cut.
        self.totals.cut_events += sum(place.until_us is not None for place in cursor.streams.values())
        return {name: Place(place.first, place.missing) for name, place in cursor.streams.items()}

    def select(self, selections: Sequence[Selection], durable_s: float, block_frames: int, ring_s: float = 0.0) -> None:
        """Collect this from the next frame on; what came before is stored as it was selected then.

        Campaigns that are the same go on as they were, with their events and whatever else they hold.
        """
        ending = self.line.changed(selections)
        if len(self._frames) or ending:
            self.store(ending=ending)
        self._durable_s, self._block_frames, self.line.ring_s = durable_s, block_frames, ring_s
        snapshots = [stream.selection for stream in self.line.streams.values() if stream.selection.is_snapshot]
        self.line.select([*selections, *snapshots], self.source.position, self._places)
        self._places = {}

    def snapshot(self, selection: Selection) -> None:
        """Capture now, beside the campaigns."""
        self.store()
        running = [stream.selection for stream in self.line.streams.values()]
        others = [other for other in running if other.stream != selection.stream]
        self.line.select([*others, selection], self.source.position)

    def run(self, stopping: Callable[[], bool], between: Callable[[], None] = lambda: None) -> None:
        """Collect until stopping() or the end of the source; between() is called between steps."""
        while not stopping() and not self.finished:
            between()
            if self.line.streams or self.source.live:
                self.step()
            else:
                time.sleep(READ_WAIT_S)
        self.store(last=True)

    def step(self) -> None:
        """Read what there is, and store a block when it is full or due."""
        held = len(self._frames)
        wait = min(READ_WAIT_S, max(0.0, self._due() - time.monotonic())) if held else READ_WAIT_S
        more = self.source.read(self._frames, self._block_frames - held, wait)
        if not held and len(self._frames):
            self._since = time.monotonic()
        if not more or len(self._frames) >= self._block_frames or (self._frames and time.monotonic() >= self._due()):
            self.store()
        self.finished = not more

    @property
    def held_s(self) -> float:
        """How long the oldest frame that is not in a block has been waiting."""
        return time.monotonic() - self._since if len(self._frames) else 0.0

    def store(self, last: bool = False, ending: Collection[str] = ()) -> None:
        """Make blocks of the frames held, and return when they are durable.

        last: nothing follows; ending: streams that are not going on.
        """
        if not len(self._frames) and not last and not ending:
            return
        source, count = self.source, len(self._frames)
        batch = Batch(
            self._frames,
            Coverage(source.name, source.position - count, source.position, source.missing),
            source.clock,
            source.unparsed_lines - self._unparsed,
            source.overflowed - self._overflowed,
            last,
        )
        records = self.line.take(batch, ending)
        if records or last or time.monotonic() - self._cursor_stored >= CURSOR_S:
            self._append(records)
            self._cursor_stored = time.monotonic()
        if records and not self.totals.blocks:
            self._on_first()
        self.totals.frames += count
        self.totals.blocks += len(records)
        self.totals.bytes += sum(len(record.body) for record in records)
        self.totals.samples += self.line.samples
        self.totals.unknown_frames += self.line.traffic.unknown
        self.totals.missing_frames += source.missing
        self._overflowed, self._unparsed, source.missing = source.overflowed, source.unparsed_lines, 0
        self._frames.clear()

    def _due(self) -> float:
        return self._since + min(self._durable_s, self.line.latency_s)

    def _cursor(self) -> bytes:
        places = {
            name: stream.place
            for name, stream in self.line.streams.items()
            if not stream.selection.is_snapshot and stream.place != Place(self.source.position)
        }
        sessions = self.line.assembler.save()
        return msgspec.json.encode(Cursor(self.source.cursor(), self.source.clock.boot_id, places, sessions))

    def _append(self, records: list[NewRecord]) -> None:
        """Until it is stored: meanwhile a live source overflows in the kernel, which counts what it drops."""
        warned = False
        while True:
            try:
                self._outbox.append(records, (self.source.name, self._cursor()))
                self.problem = ""
                return
            except OutboxError as error:
                self.problem = f"the outbox does not take a block: {error}; trying until it does"
                if not warned:
                    log.error("%s", self.problem)
                    warned = True
                time.sleep(RETRY_S)

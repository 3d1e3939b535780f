"""The collector's line: frames of a source, decoded, selected, made into blocks, stored.

    source ──read──► frames ──decode──► columns ──encode, for each campaign──► blocks ──append──► outbox
                       │                                                                  │
                       └ the source's cursor ─────────────────────────────────────────────┘ one transaction

A block is stored at the latest durable_s after its first frame came: that much of a live bus is what a kill can
cost, and the next block says how many frames are missing. A replay goes on from the cursor that was stored together
with its data, so a kill costs it nothing and gives nothing twice.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from cy_core.columns import Columns
from cy_core.frames import Frames
from edge import block
from edge.campaign import Campaign, Selection
from edge.decoder import Decoder
from edge.errors import OutboxError
from edge.message import Block, Counters, Coverage
from edge.outbox import MAX_BODY_BYTES, NewRecord, Outbox
from edge.source import Source

log = logging.getLogger(__name__)

READ_WAIT_S = 0.1  # the longest the loop is deaf to settings and to stopping
RETRY_S = 1.0


class CollectorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The collector's twin, and its defaults.

    durable_s: how long a frame of a live bus may wait to be stored; block_frames: the most in one block.
    """

    campaigns: dict[str, Campaign] = {}
    durable_s: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 1.0
    block_frames: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 8192


class Totals(msgspec.Struct):
    """Since the process started."""

    frames: int = 0
    samples: int = 0
    blocks: int = 0
    bytes: int = 0
    unknown_frames: int = 0
    missing_frames: int = 0


class Collector:
    """Runs one source into one outbox. select() may be called between steps, from the thread that runs it."""

    def __init__(
        self, source: Source, decoder: Decoder, outbox: Outbox, on_first: Callable[[], None] = lambda: None
    ) -> None:
        """on_first is called once, when the first frames have been stored."""
        self.totals = Totals()
        self.finished = False
        self.source = source
        self._decoder = decoder
        self._on_first = on_first
        self._outbox = outbox
        self._manifest = bytes.fromhex(decoder.manifest.hash)
        self._selections: Sequence[Selection] = ()
        self._durable_s = 1.0
        self._block_frames = 8192
        self._frames = Frames()
        self._columns = Columns(decoder.plan)
        self._since = 0.0
        cursor = outbox.cursor(source.name)
        if cursor is not None:
            source.resume(cursor)
        self._first = source.position
        self._overflowed = source.overflowed
        self._unparsed = source.unparsed_lines

    def select(self, selections: Sequence[Selection], durable_s: float, block_frames: int) -> None:
        """Collect this from the next frame on; what came before is stored as it was selected then."""
        self.store()
        self._selections, self._durable_s, self._block_frames = selections, durable_s, block_frames

    def run(self, stopping: Callable[[], bool], between: Callable[[], None] = lambda: None) -> None:
        """Collect until stopping() or the end of the source; between() is called between steps."""
        while not stopping() and not self.finished:
            between()
            if self._selections:
                self.step()
            else:
                time.sleep(READ_WAIT_S)
        self.store()

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

    def store(self) -> None:
        """Make blocks of the frames held, and return when they are durable."""
        if not len(self._frames):
            return
        records = self._records(self._frames, self._coverage())
        self._append(records)
        if not self.totals.frames:
            self._on_first()
        self.totals.frames += len(self._frames)
        self.totals.blocks += len(records)
        self.totals.bytes += sum(len(record.body) for record in records)
        self._first = self.source.position
        self._overflowed, self._unparsed = self.source.overflowed, self.source.unparsed_lines
        self.totals.missing_frames += self.source.missing
        self.source.missing = 0
        self._frames.clear()

    def _due(self) -> float:
        return self._since + self._durable_s

    def _coverage(self) -> Coverage:
        end = self.source.position
        return Coverage(self.source.name, end - len(self._frames), end, self.source.missing)

    def _records(self, frames: Frames, coverage: Coverage, first: bool = True) -> list[NewRecord]:
        """A block for each campaign; in halves where the outbox would not take the whole."""
        columns = self._decoder.decode_batch(frames, self._columns)
        counters = self._counters(columns, first)
        records = [self._record(selection, columns, coverage, counters) for selection in self._selections]
        if all(len(record.body) <= MAX_BODY_BYTES for record in records) or len(frames) < 2:
            self.totals.samples += sum(columns.samples(selection.keep) for selection in self._selections)
            self.totals.unknown_frames += columns.unknown_frames
            return records
        middle = len(frames) // 2
        left = msgspec.structs.replace(coverage, end=coverage.first + middle)
        right = msgspec.structs.replace(coverage, first=coverage.first + middle, missing=0)
        return self._records(frames.slice(0, middle), left, first) + self._records(
            frames.slice(middle, len(frames)), right, False
        )

    def _record(self, selection: Selection, columns: Columns, coverage: Coverage, counters: Counters) -> NewRecord:
        counters = msgspec.structs.replace(counters, samples=columns.samples(selection.keep))
        body = Block(block.encode(columns, selection.keep), self.source.clock, coverage, counters).encode()
        return NewRecord(selection.priority, selection.stream, self._manifest, body)

    def _counters(self, columns: Columns, first: bool) -> Counters:
        return Counters(
            unknown_frames=columns.unknown_frames,
            short_frames=columns.short_frames,
            remote_frames=columns.remote_frames,
            error_frames=columns.error_frames,
            unparsed_lines=self.source.unparsed_lines - self._unparsed if first else 0,
            overflowed_frames=self.source.overflowed - self._overflowed if first else 0,
        )

    def _append(self, records: list[NewRecord]) -> None:
        """Until it is stored: meanwhile a live source overflows in the kernel, which counts what it drops."""
        warned = False
        while True:
            try:
                self._outbox.append(records, (self.source.name, self.source.cursor()))
                return
            except OutboxError as error:
                if not warned:
                    log.error("the outbox does not take the block: %s; trying until it does", error)
                    warned = True
                time.sleep(RETRY_S)

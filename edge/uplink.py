"""Send the outbox to the cloud, most important and oldest first, and forget what the cloud has acknowledged.

    outbox ── peek ──► pack to n x 4096 bytes ──► up to 16 in flight ──► cloud
      ▲                                                                    │
      └────────────── ack, set_aside, forget_evictions ◄── acknowledged ───┘

A record leaves the outbox only after the cloud's acknowledgement: it can arrive twice, and never not at all; the
cloud drops repeats by (vehicle, outbox, sequence). When a message fails, no new one goes out until all in flight
have ended; then it starts again at the oldest record. So what arrives over a connection that keeps order arrives,
for the first time, in the order of its stream. All outbox calls run in one thread.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import msgspec

from edge.cloud import Cloud
from edge.errors import CloudUnreachable, MessageRejected, OutboxFull
from edge.message import MAX_MESSAGE_BYTES, UNIT_BYTES, fit, pack
from edge.outbox import LedgerEntry, Outbox, Record

log = logging.getLogger(__name__)

PROPERTIES = {"$.ct": "application/x-protobuf"}
PROPERTY_BYTES = 128  # what they and the message id add to what is billed
TOPIC_BYTES = 768  # topic with everything percent-encoded, for the longest device and module names
MAX_RECORDS = 1000
MAX_EVICTIONS = 50
POLL_SECONDS = 0.1
REJECTED = "rejected"

T = TypeVar("T")
_Positive = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class UplinkSettings(msgspec.Struct, frozen=True):
    """The uplink's twin, and its defaults.

    latency_s: how long to wait for a message to fill; none in a backlog or with priority 0. message_units: its
    size in units of 4096 bytes, which is what is billed. report_s: how often the counters are reported.
    """

    latency_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0
    message_units: Annotated[int, msgspec.Meta(ge=1, le=64)] = 16
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=16)] = 16
    retry_min_s: _Positive = 1.0
    retry_max_s: _Positive = 60.0
    send_timeout_s: _Positive = 60.0
    report_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 60.0

    def __post_init__(self) -> None:
        if self.retry_min_s > self.retry_max_s:
            raise ValueError(f"retry_min_s {self.retry_min_s} is greater than retry_max_s {self.retry_max_s}")

    @property
    def message_bytes(self) -> int:
        """The most that one message's body may have."""
        return min(self.message_units * UNIT_BYTES - PROPERTY_BYTES, MAX_MESSAGE_BYTES - TOPIC_BYTES)


class Sent(msgspec.Struct):
    """What the cloud has acknowledged since the start, and what it refused."""

    messages: int = 0
    records: int = 0
    bytes: int = 0
    rejected: int = 0
    retries: int = 0


class _Message(msgspec.Struct, frozen=True):
    id: str
    body: bytes
    records: list[Record]
    evictions: list[LedgerEntry]


class Uplink:
    """executor: the one thread that outbox calls run in. on_first is called at the first acknowledgement."""

    def __init__(
        self,
        outbox: Outbox,
        cloud: Cloud,
        executor: Executor,
        vehicle_id: str,
        settings: UplinkSettings | None = None,
        poll_seconds: float = POLL_SECONDS,
        on_first: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings or UplinkSettings()
        self.sent = Sent()
        self._outbox = outbox
        self._cloud = cloud
        self._executor = executor
        self._vehicle_id = vehicle_id
        self._poll_seconds = poll_seconds
        self._on_first = on_first
        self._flights: dict[asyncio.Task[None], _Message] = {}
        self._after: dict[int, int] = {}  # by priority, the last sequence that is in flight
        self._alone: set[int] = set()  # of a rejected message: each has to show whether it is the one
        self._failure = ""
        self._delay_s = 0.0
        self._look = True  # whether the outbox may hold something that was not there before
        self._due: float | None = None  # when the message now being filled has to go

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    async def run(self) -> None:
        """Send until cancelled. Raises OutboxError."""
        while True:
            await self.step()

    async def step(self) -> None:
        """Send one message, or wait for a reason to."""
        await self._cloud.wait_connected()
        if self._failure:
            await self._start_again()
        if len(self._flights) >= self.settings.max_in_flight:
            await self._settle(None)
        elif (self._look or self._is_due()) and (message := await self._next_message()):
            task = asyncio.create_task(self._send(message), name=message.id)
            self._flights[task] = message
        else:
            await self._settle(self._poll_seconds)
            self._look = await self._in_thread(self._outbox.changed) or self._look

    async def finish(self, seconds: float) -> None:
        """Start nothing new; give what is in flight this long to be acknowledged, and abandon the rest."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._flights and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await self._settle(left)
        for task in self._flights:
            task.cancel()

    # Choosing

    async def _next_message(self) -> _Message | None:
        """The next message, or None: nothing to send, or it has not waited long enough to be filled."""
        self._look = False
        message, urgent = await self._in_thread(self._choose)
        if message is None:
            self._due = None
            return None
        if self._due is None:
            self._due = asyncio.get_running_loop().time() + self.settings.latency_s
        if not urgent and not self._is_due():
            return None
        self._look, self._due = True, None
        for record in message.records:
            self._after[record.priority] = record.sequence
        return message

    def _is_due(self) -> bool:
        return self._due is not None and asyncio.get_running_loop().time() >= self._due

    def _choose(self) -> tuple[_Message | None, bool]:
        """In the outbox's thread: a message of what is not in flight, and whether waiting cannot fill it."""
        limit = self.settings.message_bytes
        flying = {entry.id for message in self._flights.values() for entry in message.evictions}
        # Before peek: what comes between the two would look like a backlog behind a message that it fits into.
        waiting = self._outbox.stats().records - sum(len(message.records) for message in self._flights.values())
        records = self._outbox.peek(limit, MAX_RECORDS, self._after)
        entries: list[LedgerEntry] = []
        with suppress(OutboxFull):  # they wait; what can be sent makes room
            entries = [entry for entry in self._outbox.ledger(MAX_EVICTIONS) if entry.id not in flying]
        if not records:
            return self._of_evictions(entries), False
        group = self._group(records)
        first = group[0]
        own = [entry for entry in entries if entry.outbox == first.outbox and first.sequence not in self._alone]
        count, evictions = fit(self._vehicle_id, group, own, limit)
        if count == 0:  # a record larger than the unit goes alone
            count, evictions = 1, 0
        message = self._pack(first.outbox, first.manifest, group[:count], own[:evictions])
        return message, count < waiting or first.priority == 0

    def _group(self, records: list[Record]) -> list[Record]:
        """The first ones, as far as they can share a message."""
        first = records[0]
        if first.sequence in self._alone:
            return records[:1]
        for count, record in enumerate(records):
            if (record.outbox, record.manifest) != (first.outbox, first.manifest) or record.sequence in self._alone:
                return records[:count]
        return records

    def _of_evictions(self, entries: list[LedgerEntry]) -> _Message | None:
        own = [entry for entry in entries if entry.outbox == entries[0].outbox]
        return self._pack(own[0].outbox, b"", [], own) if own else None

    def _pack(self, outbox: bytes, manifest: bytes, records: list[Record], evictions: list[LedgerEntry]) -> _Message:
        body = pack(self._vehicle_id, outbox, manifest, records, evictions)
        ends = (records[0].sequence, records[-1].sequence) if records else (f"e{evictions[0].id}", evictions[-1].id)
        return _Message(f"{outbox.hex()[:8]}-{ends[0]}-{ends[1]}", body, records, evictions)

    # Sending

    async def _send(self, message: _Message) -> None:
        await self._cloud.send(message.body, message.id, PROPERTIES, self.settings.send_timeout_s)

    async def _settle(self, seconds: float | None) -> None:
        """Wait this long, or until a message in flight has ended, and take note of those that have."""
        if not self._flights:
            await asyncio.sleep(seconds or 0)
            return
        done, _ = await asyncio.wait(self._flights, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        acknowledged: list[_Message] = []
        for task in done:
            error = task.exception()
            message = self._flights[task]
            if error is None:
                acknowledged.append(message)
            elif isinstance(error, MessageRejected):
                await self._rejected(message, error)
            elif isinstance(error, CloudUnreachable):
                self._failure = self._failure or str(error)
            else:
                raise error
        if acknowledged:
            await self._acknowledged(acknowledged)
        for task in done:  # not before: until the outbox has forgotten them, they count as in flight
            del self._flights[task]
        if not self._flights:
            self._after.clear()

    async def _acknowledged(self, messages: list[_Message]) -> None:
        sequences = [record.sequence for message in messages for record in message.records]
        evictions = [entry.id for message in messages for entry in message.evictions]
        await self._persist(lambda: self._outbox.ack(sequences))
        if evictions:
            await self._persist(lambda: self._outbox.forget_evictions(evictions))
        self._alone.difference_update(sequences)
        if not self.sent.messages:
            self._on_first()
        self.sent.messages += len(messages)
        self.sent.records += len(sequences)
        self.sent.bytes += sum(len(message.body) for message in messages)
        self._delay_s = 0.0
        self._look = True

    async def _rejected(self, message: _Message, error: MessageRejected) -> None:
        """Set a record aside that the cloud will never take. Of several, each is tried alone first."""
        sequences = [record.sequence for record in message.records]
        if len(sequences) > 1:
            self._alone.update(sequences)
            self._failure = self._failure or f"rejected: {error}"
            return
        log.error("message %s set aside, the cloud rejects it: %s", message.id, error)
        self.sent.rejected += 1
        if sequences:
            await self._persist(lambda: self._outbox.set_aside(sequences, REJECTED, str(error)))
        else:
            await self._persist(lambda: self._outbox.forget_evictions(entry.id for entry in message.evictions))
        self._alone.difference_update(sequences)

    async def _start_again(self) -> None:
        """After a failure: let everything in flight end, wait, and start at the oldest record."""
        while self._flights:
            await self._settle(None)
        low, high = self.settings.retry_min_s, self.settings.retry_max_s
        self._delay_s = min(max(low, 2 * self._delay_s), high)
        delay = self._delay_s * random.uniform(0.5, 1.0)
        log.warning("sending again in %.1f s: %s", delay, self._failure)
        await asyncio.sleep(delay)
        self.sent.retries += 1
        self._failure, self._look = "", True

    # The outbox

    async def _persist(self, work: Callable[[], Any]) -> None:
        """Until it works: what the cloud has must not be sent for ever because the disk is full for a while."""
        delay = 0.1
        while True:
            try:
                return await self._in_thread(work)
            except OutboxFull as error:
                log.error("the outbox cannot take an acknowledgement, trying again: %s", error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, self.settings.retry_max_s)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

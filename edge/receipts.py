"""What becomes of records in the outbox that a hub has acknowledged: forgotten, or held until the cloud confirms them.

    acknowledged ──► forget ──► ack                                  without confirm: a hub's word is enough
                          └───► hold ──► take_confirmation ──► confirm: gone, or back in the queue
                                   └───► keep_time: held for too long, back in the queue

All outbox calls of the uplink run in one thread, through here.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from typing import TypeVar

from edge.choice import Message
from edge.confirmation import Confirmation
from edge.errors import OutboxFull
from edge.fates import Fates
from edge.outbox import LedgerEntry, Outbox, Record
from edge.uplink_settings import Sent, UplinkSettings

log = logging.getLogger(__name__)

EXPIRE_SECONDS = 60.0

T = TypeVar("T")


class Receipts:
    """executor: the outbox's thread. settings: those of the moment. Counts in sent and fates."""

    def __init__(
        self, outbox: Outbox, executor: Executor, settings: Callable[[], UplinkSettings], sent: Sent, fates: Fates
    ) -> None:
        self._outbox = outbox
        self._executor = executor
        self._settings = settings
        self._sent = sent
        self._fates = fates
        self._told: dict[int, tuple[LedgerEntry, float]] = {}  # with confirm: what the hub took, and when
        self._confirmed: dict[str, Confirmation] = {}
        self._expire_at = 0.0

    @property
    def told(self) -> AbstractSet[int]:
        """Entries of the ledger that the hub has, and the cloud has not confirmed yet."""
        return self._told.keys()

    async def keep_up(self) -> bool:
        """With the settings and the time; return whether there may be something to send that was not there before."""
        is_news = self._is_confirmation_new()
        if is_news:
            await self.persist(self._take_confirmation)
        if asyncio.get_running_loop().time() >= self._expire_at:
            await self._keep_time()
            is_news = True  # a new day may have begun, the network may be another one
        return is_news

    async def forget(self, messages: Sequence[Message], cursor: tuple[str, bytes] | None) -> None:
        """The hub has these messages."""
        sequences = [record.sequence for message in messages for record in message.records]
        evictions = {entry.id: entry for message in messages for entry in message.evictions}
        if not self._settings().confirm:
            await self.persist(lambda: self._outbox.ack(sequences, cursor, evictions))
            self._fates.note((), evictions.values())
            return
        records = [record for message in messages for record in message.records]
        known = [record.sequence for record in records if self._is_confirmed(record)]
        await self.persist(lambda: self._outbox.hold(set(sequences).difference(known), cursor))
        if known:  # sent again, or confirmed before its acknowledgement came
            await self.persist(lambda: self._outbox.ack(known))
            self._sent.confirmed += len(known)
        self._told |= {entry.id: (entry, time.monotonic()) for entry in evictions.values()}

    async def persist(self, work: Callable[[], T]) -> T:
        """Until it works: what the cloud has must not be sent for ever because the disk is full for a while."""
        delay = 0.1
        while True:
            try:
                return await self.in_thread(work)
            except OutboxFull as error:
                log.error("the outbox cannot take an acknowledgement, trying again: %s", error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, self._settings().retry_max_s)

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def _keep_time(self) -> None:
        settings = self._settings()
        wait = min(EXPIRE_SECONDS, settings.confirm_within_s) if settings.confirm else EXPIRE_SECONDS
        self._expire_at = asyncio.get_running_loop().time() + wait
        await self.persist(self._outbox.expire)
        if not settings.confirm:
            await self.persist(self._outbox.release)
            return
        within = settings.confirm_within_s
        self._sent.sent_again += await self.persist(lambda: self._outbox.reclaim(within))
        due = time.monotonic() - within
        self._told = {key: told for key, told in self._told.items() if told[1] > due}

    def _is_confirmation_new(self) -> bool:
        settings = self._settings()
        return settings.confirmed != self._confirmed or bool(self._told and not settings.confirm)

    def _take_confirmation(self) -> None:
        """In the outbox's thread: what the cloud says it has."""
        settings = self._settings()
        for outbox, said in settings.confirmed.items():
            if self._confirmed.get(outbox) == said:
                continue
            gone, back = self._outbox.confirm(bytes.fromhex(outbox), said.until, said.ranges(), said.first)
            self._sent.confirmed += gone
            self._sent.sent_again += back
            told = [entry for entry, _ in self._told.values() if entry.outbox.hex() == outbox and said.knows(entry)]
            self._outbox.ack([], entries=[entry.id for entry in told])
            self._fates.note((), told)
            for entry in told:
                del self._told[entry.id]
        if not settings.confirm:
            self._outbox.ack([], entries=self._told)
            self._fates.note((), (entry for entry, _ in self._told.values()))
            self._told.clear()
        self._confirmed = settings.confirmed

    def _is_confirmed(self, record: Record) -> bool:
        said = self._confirmed.get(record.outbox.hex())
        return said is not None and said.has(record.sequence)

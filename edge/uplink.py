"""Send the outbox to the cloud, and forget what the cloud has acknowledged.

    outbox ── Chooser ──► message ──► a window of up to 16 in flight ──► cloud
      ▲                                                                    │
      └──────────────── ack or hold, set_aside ◄── acknowledged ───────────┘

A record leaves the outbox only after the cloud's acknowledgement: it can arrive twice, and never not at all; the
cloud drops repeats by (vehicle, outbox, sequence). When a message fails, no new one goes out until all in flight
have ended; then it starts again at the oldest record. So what arrives over a connection that keeps order arrives,
for the first time, in the order of its stream; except after a record that breaks the connection again and again:
that one is passed over, and tried alone. What is forgotten when: edge/receipts.py.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor

import msgspec

from edge.choice import Chooser, Flying, Message
from edge.cloud import Cloud
from edge.errors import CloudUnreachable, MessageRejected
from edge.fates import Fates
from edge.outbox import Outbox
from edge.receipts import Receipts
from edge.suspects import Suspects
from edge.uplink_settings import Sent, UplinkSettings

log = logging.getLogger(__name__)

PROPERTIES = {"$.ct": "application/x-protobuf"}
POLL_SECONDS = 0.1
FORGET_SECONDS = 0.25
SLOW_SECONDS = 5.0  # an acknowledgement that takes longer says: send less at a time
REJECTED, POISONOUS = "rejected", "poisonous"


class Uplink:
    """executor: the one thread that outbox calls run in. metered says whether the network costs by the byte.
    on_first is called at the first acknowledgement."""

    def __init__(
        self,
        outbox: Outbox,
        cloud: Cloud,
        executor: Executor,
        vehicle_id: str,
        settings: UplinkSettings | None = None,
        poll_seconds: float = POLL_SECONDS,
        metered: Callable[[], bool] = lambda: False,
        on_first: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings or UplinkSettings()
        self.sent = Sent()
        self.fates = Fates()
        self.problem = ""  # why nothing goes out at the moment
        self._outbox = outbox
        self._cloud = cloud
        self._receipts = Receipts(outbox, executor, lambda: self.settings, self.sent, self.fates)
        self._vehicle_id = vehicle_id
        self._poll_seconds = poll_seconds
        self._network_metered = metered
        self._on_first = on_first
        self._chooser: Chooser | None = None
        self._flights: dict[asyncio.Task[None], Message] = {}  # in the order in which they went out
        self._began: dict[asyncio.Task[None], float] = {}
        self._arrived: list[Message] = []  # that the hub has, and the outbox has not forgotten yet
        self._arrived_at = 0.0  # the first of those
        self._after: dict[int, int] = {}  # by priority, the last sequence that is in flight
        self._suspects = Suspects()
        self._window = float(self.settings.max_in_flight)
        self._is_slow = False
        self._failure = ""
        self._delay_s = 0.0
        self._look = True  # whether the outbox may hold something that was not there before
        self._due: float | None = None  # when the message now being filled has to go

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def window(self) -> int:
        """How many may be in flight just now: fewer when acknowledgements are slow or fail."""
        return max(1, min(int(self._window), self.settings.max_in_flight))

    @property
    def is_throttled(self) -> bool:
        """Whether less is sent at a time because acknowledgements come late."""
        return self._is_slow and self.window < self.settings.max_in_flight

    @property
    def waiting_for_budget(self) -> list[int]:
        """The priorities that have spent what they may cost today."""
        return self._chooser.waiting_for_budget if self._chooser else []

    @property
    def metered(self) -> bool:
        """Whether only what is urgent goes out."""
        return self._network_metered() if self.settings.metered is None else self.settings.metered

    def look_again(self) -> None:
        """What could not go out may be allowed to now."""
        self._look = True

    async def run(self) -> None:
        """Send until cancelled. Raises OutboxError."""
        while True:
            await self.step()

    async def step(self) -> None:
        """Send what may go out, or wait for a reason to."""
        self._look = await self._receipts.keep_up() or self._look
        await self._cloud.wait_connected()
        if any(task.done() for task in self._flights):  # at once: to wait for half of them cost a quarter at 50 ms
            await self._settle(0)
        if self._failure:
            await self._start_again()
        is_idle = False
        if len(self._flights) >= self.window:
            await asyncio.wait(self._flights, timeout=self._forget_in_s(), return_when=asyncio.FIRST_COMPLETED)
        elif (self._look or self._is_due()) and (messages := await self._next_messages()):
            if any(task.done() and task.exception() for task in self._flights):
                self._take_back(messages)  # it broke while we chose: what comes after must not overtake
                await self._settle(0)
            else:
                for message in messages:
                    self._start(message)
        else:
            is_idle = True
            await self._settle(self._poll_seconds)
            self._look = await self._receipts.in_thread(self._outbox.changed) or self._look
        if is_idle or len(self._arrived) >= self.window or self._forget_in_s() == 0:
            await self._forget_arrived()  # while others are on their way

    def _forget_in_s(self) -> float | None:
        """To forget in the outbox costs a durable write, so a windowful is forgotten at once, but none too late."""
        return max(0.0, self._arrived_at + FORGET_SECONDS - time.monotonic()) if self._arrived else None

    async def finish(self, seconds: float) -> None:
        """Start nothing new; give what is in flight this long to be acknowledged, and abandon the rest."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._flights and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await self._settle(left)
        await self._forget_arrived()
        for task in self._flights:
            task.cancel()

    # Choosing

    async def _next_messages(self) -> list[Message]:
        """As many as may go out now; none: there is nothing, or it has not waited long enough to fill a message."""
        self._look = False
        if self._suspects.is_due and (suspect := await self._suspect()):
            self._look = True
            return [suspect]
        is_due = self._is_due() or not self.settings.latency_s
        messages, is_filling = await self._receipts.in_thread(lambda: self._choose(is_due))
        self._look = self._look or bool(messages)  # it may have been told to look again meanwhile
        if not is_filling or messages:
            self._due = None
        if is_filling and self._due is None:
            self._due = asyncio.get_running_loop().time() + self.settings.latency_s
        return messages or ([] if is_filling else [one for one in [await self._suspect()] if one])

    async def _suspect(self) -> Message | None:
        """A record that the connection broke at, alone, to see whether it is to blame."""
        if self._flights or (sequence := self._suspects.next()) is None:
            return None
        record = await self._receipts.in_thread(lambda: self._outbox.record(sequence))
        if record is None:
            self._suspects.acquit([sequence])
            return None
        assert self._chooser is not None
        message = self._chooser.single(record)
        self._chooser.commit(message)
        return message

    def _is_due(self) -> bool:
        return self._due is not None and asyncio.get_running_loop().time() >= self._due

    def _choose(self, is_due: bool) -> tuple[list[Message], bool]:
        """In the outbox's thread: what fits into the window, and whether more is there that does not fill a message."""
        if self._chooser is None:
            self._chooser = Chooser(self._outbox, self._vehicle_id, lambda: self.metered)
        room = self.window - len(self._flights)
        return self._chooser.choose(self.settings.limits(), self._flying(), room, is_due)

    def _flying(self) -> Flying:
        messages = [*self._flights.values(), *self._arrived]
        return Flying(
            self._after,
            sum(len(message.records) for message in messages),
            {entry.id for message in messages for entry in message.evictions} | self._receipts.told,
            self._suspects.alone,
            self._suspects.deferred,
        )

    def _take_back(self, messages: list[Message]) -> None:
        """They do not go out; what is in flight fails soon, and then it starts again at the oldest record."""
        assert self._chooser is not None
        for message in messages:
            self._chooser.take_back(message)

    # Sending

    def _start(self, message: Message) -> None:
        task = asyncio.create_task(self._send(message), name=message.id)
        self._flights[task] = message
        self._began[task] = time.monotonic()

    async def _send(self, message: Message) -> None:
        await self._cloud.send(message.body, message.id, PROPERTIES, self.settings.send_timeout_s)

    async def _settle(self, seconds: float | None) -> None:
        """Wait this long, or until a message in flight has ended, and take note of those that have."""
        if not self._flights:
            await asyncio.sleep(seconds or 0)
            return
        done, _ = await asyncio.wait(self._flights, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in self._flights if task in done]:
            error = task.exception()
            message = self._flights[task]
            if error is None:
                self._count(message)
                self._arrived_at = self._arrived_at if self._arrived else time.monotonic()
                self._arrived.append(msgspec.structs.replace(message, body=b""))
                self._pace(time.monotonic() - self._began[task])
            elif isinstance(error, MessageRejected):
                await self._rejected(message, error)
            elif isinstance(error, CloudUnreachable):
                await self._failed(message, error)
            else:
                raise error
            del self._flights[task], self._began[task]
        if not self._flights and not self._arrived:
            self._after.clear()

    def _count(self, message: Message) -> None:
        if not self.sent.messages:
            self._on_first()
        self.fates.note(message.records)
        self.sent.messages += 1
        self.sent.records += len(message.records)
        self.sent.bytes += len(message.body)
        self.sent.units += message.units
        self._delay_s, self.problem = 0.0, ""

    def _pace(self, seconds: float) -> None:
        """A hub that throttles answers late: halve the window; it grows again by one message for each windowful."""
        self._is_slow = seconds > SLOW_SECONDS or (self._is_slow and self.window < self.settings.max_in_flight)
        if seconds > SLOW_SECONDS:
            self.sent.slow += 1
            self._window = max(1.0, self._window / 2 ** (1 / self.window))
        else:
            self._window = min(self._window + 1 / self.window, self.settings.max_in_flight)

    async def _forget_arrived(self) -> None:
        """In the outbox; until then they count as on their way."""
        messages = self._arrived
        if not messages:
            return
        assert self._chooser is not None
        await self._receipts.forget(messages, self._chooser.cursor() if self.settings.daily_bytes else None)
        self._suspects.acquit([record.sequence for message in messages for record in message.records])
        self._look, self._arrived = True, []
        if not self._flights:
            self._after.clear()

    # Failing

    async def _failed(self, message: Message, error: CloudUnreachable) -> None:
        """The first of a round is the one that the connection broke at, if it is any."""
        if self._failure:
            return
        self._failure = str(error)
        self._window = max(1.0, self._window / 2)
        guilty = self._suspects.blame([record.sequence for record in message.records])
        if guilty is not None:
            log.error("record %d set aside, the connection breaks at it and at no other: %s", guilty, error)
            self.sent.poisonous += 1
            await self._receipts.persist(lambda: self._outbox.set_aside([guilty], POISONOUS, str(error)))

    async def _rejected(self, message: Message, error: MessageRejected) -> None:
        """Set a record aside that the cloud will never take. Of several, each is tried alone first."""
        sequences = [record.sequence for record in message.records]
        if len(sequences) > 1:
            self._suspects.alone.update(sequences)
            self._failure = self._failure or f"rejected: {error}"
            return
        log.error("message %s set aside, the cloud rejects it: %s", message.id, error)
        self.sent.rejected += 1
        if sequences:
            await self._receipts.persist(lambda: self._outbox.set_aside(sequences, REJECTED, str(error)))
        else:
            await self._receipts.persist(
                lambda: self._outbox.ack([], entries=[entry.id for entry in message.evictions])
            )
        self._suspects.acquit(sequences)

    async def _start_again(self) -> None:
        """After a failure: let everything in flight end, wait, and start at the oldest record."""
        while self._flights:
            await self._settle(None)
        await self._forget_arrived()
        low, high = self.settings.retry_min_s, self.settings.retry_max_s
        self._delay_s = min(max(low, 2 * self._delay_s), high)
        delay = self._delay_s * random.uniform(0.5, 1.0)
        log.warning("sending again in %.1f s: %s", delay, self._failure)
        self.problem = self._failure
        await asyncio.sleep(delay)
        self.sent.retries += 1
        self._failure, self._look = "", True

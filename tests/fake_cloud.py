"""A cloud that acknowledges when told, and an uplink that sends to it."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from edge.message import Envelope, unpack
from edge.outbox import NewRecord, Outbox
from edge.uplink import Uplink
from edge.uplink_settings import UplinkSettings

MANIFEST = bytes(32)
PROMPT = UplinkSettings(latency_s=0, retry_min_s=0.001, retry_max_s=0.002, message_units=1)


class FakeCloud:
    """Acknowledges when told; answer(envelope) may hold a message back or raise."""

    def __init__(self) -> None:
        self.answer: Callable[[Envelope], Awaitable[None]] = self.take
        self.attempts: list[Envelope] = []
        self.ids: list[str] = []
        self.delivered: list[Envelope] = []
        self.changed = asyncio.Event()
        self.in_flight = self.most_in_flight = 0
        self.connected = asyncio.Event()
        self.connected.set()

    async def take(self, envelope: Envelope) -> None:
        return

    async def wait_connected(self) -> None:
        await self.connected.wait()

    async def send(self, body: bytes, message_id: str, properties: Mapping[str, str], timeout_s: float) -> None:
        assert properties == {"$.ct": "application/x-protobuf"}
        envelope = unpack(body)
        self.ids.append(message_id)
        self.attempts.append(envelope)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.changed.set()
        try:
            await self.answer(envelope)
            self.delivered.append(envelope)
        finally:
            self.in_flight -= 1
            self.changed.set()

    @property
    def sequences(self) -> list[int]:
        return [record.sequence for envelope in self.delivered for record in envelope.records]


@asynccontextmanager
async def running(
    outbox: Outbox, cloud: Any, executor: ThreadPoolExecutor, settings: UplinkSettings = PROMPT
) -> AsyncIterator[Uplink]:
    uplink = Uplink(outbox, cloud, executor, "car", settings, poll_seconds=0.001)
    task = asyncio.create_task(uplink.run())
    try:
        async with asyncio.timeout(20):
            yield uplink
            assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await uplink.finish(0)


async def until(cloud: FakeCloud, condition: Callable[[], bool]) -> None:
    """Wait on what the cloud sees; the outbox follows within a poll of the uplink."""
    while not condition():
        cloud.changed.clear()
        try:
            async with asyncio.timeout(0.005):
                await cloud.changed.wait()
        except TimeoutError:
            continue


async def until_empty(cloud: FakeCloud, collector: Outbox) -> None:
    await until(cloud, lambda: not collector.stats().records and not cloud.in_flight)


def new(size: int = 1000, priority: int = 5, stream: str = "drive", manifest: bytes = MANIFEST) -> NewRecord:
    return NewRecord(priority, stream, manifest, os.urandom(size))

"""The cloud behind the broker: `python -m tests.crash.receiver HOST PORT CA CERTIFICATE KEY HISTORY [confirm]`.

Says what the modules are to do, and enters every message into the history. With `confirm` the uplink is told what has
come, and sends the rest again. Each line on its standard input makes it leave the broker, or come back; a dot says that
it listens, or has left.
"""

import asyncio
import json
import ssl
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiomqtt

from edge import message
from edge.confirmation import Confirmation, names_of
from fleet.ranges import Ranges
from tests.crash.history import History

COLLECTOR = {"durable_s": 0.3, "campaigns": {"all": {"signals": {"*": {}}, "latency_s": 0.5}}}
UPLINK = {"latency_s": 0.2, "retry_max_s": 2, "retry_min_s": 0.2, "send_timeout_s": 10}
CONFIRM = {"confirm": True, "confirm_within_s": 4}
CONFIRM_S = 0.5


class Arrived:
    """What has come, as the uplink's twin says it."""

    def __init__(self) -> None:
        self._ranges: dict[bytes, Ranges] = defaultdict(Ranges)
        self._evictions: dict[bytes, list[message.Eviction]] = defaultdict(list)

    def note(self, data: bytes) -> None:
        envelope = message.unpack(data)
        for record in envelope.records:
            self._ranges[envelope.outbox_id].add(record.sequence, record.sequence)
        known = self._evictions[envelope.outbox_id]
        known += [eviction for eviction in envelope.evictions if eviction not in known]

    def confirmed(self) -> dict[str, Any]:
        said = {}
        for outbox in {*self._ranges, *self._evictions}:
            ranges, names = self._ranges[outbox], names_of(reversed(self._evictions[outbox]))
            until = ranges.last or 0
            one = Confirmation.of(until, ranges.missing(1, until), names)
            said[outbox.hex()] = {"until": one.until, "gaps": one.gaps, "evictions": one.evictions, "first": one.first}
        return said


class Receiver:
    def __init__(self, history: History, confirms: bool, **client: Any) -> None:
        self._history, self._confirms, self._client = history, confirms, client
        self._arrived = Arrived()
        self._announced = False

    async def run(self) -> None:
        lines = await _lines()
        while True:
            session = asyncio.create_task(self._stay())
            await anext(lines)
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)
            self._announced = False
            _say()
            await anext(lines)

    async def _stay(self) -> None:
        while True:
            with suppress(aiomqtt.MqttError, OSError):
                async with aiomqtt.Client(**self._client, identifier="fleet", clean_session=False) as client:
                    await self._listen(client)
            await asyncio.sleep(0.1)

    async def _listen(self, client: aiomqtt.Client) -> None:
        await client.subscribe("bordnetz/+/uplink/messages", 1)
        await client.publish("bordnetz/car/collector/desired", json.dumps(COLLECTOR), 1, retain=True)
        await client.publish("bordnetz/car/uplink/desired", json.dumps(self._settings()), 1, retain=True)
        confirming = asyncio.create_task(self._confirm(client))
        if not self._announced:
            self._announced = True
            _say()
        try:
            async for one in client.messages:
                self._history.message(bytes(one.payload))
                self._arrived.note(bytes(one.payload))
        finally:
            confirming.cancel()
            await asyncio.gather(confirming, return_exceptions=True)

    def _settings(self) -> dict[str, Any]:
        return UPLINK | (CONFIRM | {"confirmed": self._arrived.confirmed()} if self._confirms else {})

    async def _confirm(self, client: aiomqtt.Client) -> None:
        while self._confirms:
            await asyncio.sleep(CONFIRM_S)
            await client.publish("bordnetz/car/uplink/desired", json.dumps(self._settings()), 1, retain=True)


async def _lines() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return aiter(reader)


def _say() -> None:
    print(".", end="", flush=True)


def main() -> None:
    host, port, authority, certificate, key, history, *more = sys.argv[1:]
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate, key)
    receiver = Receiver(History(history), more == ["confirm"], hostname=host, port=int(port), tls_context=context)
    asyncio.run(receiver.run())


if __name__ == "__main__":
    main()

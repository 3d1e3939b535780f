"""The cloud behind the broker: `python -m tests.crash.receiver HOST PORT CA CERTIFICATE KEY HISTORY [confirm]`.

Says what the modules are to do, and enters every message into the history. With `confirm` the uplink is told what has
come, and sends the rest again. Prints a dot once it listens.
"""

import asyncio
import json
import ssl
import sys
from collections import defaultdict
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


async def confirm(client: aiomqtt.Client, arrived: Arrived) -> None:
    while True:
        settings = UPLINK | CONFIRM | {"confirmed": arrived.confirmed()}
        await client.publish("bordnetz/car/uplink/desired", json.dumps(settings), 1, retain=True)
        await asyncio.sleep(CONFIRM_S)


async def receive(host: str, port: int, context: ssl.SSLContext, history: History, confirms: bool) -> None:
    arrived = Arrived()
    while True:
        confirming = None
        try:
            client = aiomqtt.Client(host, port, identifier="fleet", tls_context=context, clean_session=False)
            async with client:
                await client.subscribe("bordnetz/+/uplink/messages", 1)
                await client.publish("bordnetz/car/collector/desired", json.dumps(COLLECTOR), 1, retain=True)
                if confirms:
                    confirming = asyncio.create_task(confirm(client, arrived))
                else:
                    await client.publish("bordnetz/car/uplink/desired", json.dumps(UPLINK), 1, retain=True)
                print(".", end="", flush=True)
                async for one in client.messages:
                    history.message(bytes(one.payload))
                    arrived.note(bytes(one.payload))
        except (aiomqtt.MqttError, OSError):
            if confirming:
                confirming.cancel()
                await asyncio.gather(confirming, return_exceptions=True)
            await asyncio.sleep(0.1)


def main() -> None:
    host, port, authority, certificate, key, history, *more = sys.argv[1:]
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate, key)
    asyncio.run(receive(host, int(port), context, History(history), more == ["confirm"]))


if __name__ == "__main__":
    main()

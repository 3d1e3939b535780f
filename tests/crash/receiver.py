"""The cloud behind the broker: `python -m tests.crash.receiver HOST PORT CA CERTIFICATE KEY HISTORY`.

Says what the modules are to do, and enters every message into the history. Prints a dot once it listens.
"""

import asyncio
import ssl
import sys

import aiomqtt

from tests.crash.history import History

DESIRED = {
    "collector": b'{"durable_s": 0.3, "campaigns": {"all": {"signals": {"*": {}}, "latency_s": 0.5}}}',
    "uplink": b'{"latency_s": 0.2, "retry_max_s": 2, "retry_min_s": 0.2, "send_timeout_s": 10}',
}


async def receive(host: str, port: int, context: ssl.SSLContext, history: History) -> None:
    while True:
        try:
            client = aiomqtt.Client(host, port, identifier="fleet", tls_context=context, clean_session=False)
            async with client:
                await client.subscribe("bordnetz/+/uplink/messages", 1)
                for module, settings in DESIRED.items():
                    await client.publish(f"bordnetz/car/{module}/desired", settings, 1, retain=True)
                print(".", end="", flush=True)
                async for message in client.messages:
                    history.message(bytes(message.payload))
        except (aiomqtt.MqttError, OSError):
            await asyncio.sleep(0.1)


def main() -> None:
    host, port, authority, certificate, key, history = sys.argv[1:]
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate, key)
    asyncio.run(receive(host, int(port), context, History(history)))


if __name__ == "__main__":
    main()

"""A hub that throttles: late acknowledgements, and 429 where a twin was asked for."""

import asyncio
from typing import Any

from edge import uplink as uplink_file
from edge.cloud.iothub import IoTHub
from simulator import mqtt
from simulator.connection import Connection, request_id
from tests.test_iothub import Edge, connected, edge, send  # noqa: F401 (edge is a fixture)
from tests.test_uplink_defects import Line, delivering, impatient, line  # noqa: F401 (fixtures)

TWIN_GET, REPORTED = "$iothub/twin/GET/", "$iothub/twin/PATCH/properties/reported/"


def acknowledge_one_each(hub: Any, seconds: float) -> None:
    """From now on PUBACKs come one after the other, so far apart."""
    loop, acknowledge, last = asyncio.get_running_loop(), hub._acknowledger.acknowledge, [0.0]

    def later(connection: Connection, packet_id: int) -> None:
        last[0] = max(loop.time(), last[0]) + seconds
        loop.call_at(last[0], acknowledge, connection, packet_id)

    hub._acknowledger.acknowledge = later


def refuse(hub: Any, topic: str, times: int) -> list[str]:
    """Answer so many requests with 429; the list grows as it is done."""
    take, refused = hub._take, list[str]()

    def take_or_refuse(connection: Connection, module: str, message: mqtt.Publish, wire_bytes: int) -> None:
        if message.topic.startswith(topic) and len(refused) < times:
            refused.append(message.topic)
            connection.answer(429, request_id(message.topic), {"errorCode": 429001})
        else:
            take(connection, module, message, wire_bytes)

    hub._take = take_or_refuse
    return refused


async def test_late_acknowledgements_close_the_window_and_the_state_says_so(line: Line, monkeypatch):  # noqa: F811
    monkeypatch.setattr(uplink_file, "SLOW_SECONDS", 0.1)
    line.uplink.settings = uplink_file.msgspec.structs.replace(line.uplink.settings, send_timeout_s=60)
    assert not line.uplink.is_throttled
    async with delivering(line):
        acknowledge_one_each(line.edge.hub, 0.05)
        line.store()
        await line.edge.until(lambda: line.uplink.window <= 4)
        assert line.uplink.is_throttled
        assert line.uplink.sent.slow
        monkeypatch.setattr(uplink_file, "SLOW_SECONDS", 60)
        line.store(60)
    assert line.edge.hub.counters["connects"] == 1


async def test_a_twin_refused_for_a_while_costs_no_connection_and_comes_in_the_end(edge: Edge):  # noqa: F811
    refused = refuse(edge.hub, TWIN_GET, 3)
    edge.hub.patch_desired("uplink", {"a": 1})
    cloud, twins = IoTHub(), []
    cloud.on_twin = twins.append
    async with connected(edge, cloud):
        assert "429" in cloud.problem
        await send(cloud)
        await edge.until(lambda: twins)
        assert twins[0]["desired"]["a"] == 1
        refuse(edge.hub, TWIN_GET, 2)
        edge.hub.patch_desired("uplink", {"a": 2})
        await edge.until(lambda: twins[-1]["desired"]["a"] == 2)
        assert cloud.problem == ""
    assert (len(refused), cloud.counters["twin_refused"]) == (3, 5)
    assert (edge.hub.counters["connects"], edge.bodies) == (1, [b"body"])

"""Direct methods through the simulated hub."""

import asyncio
from typing import Any

import pytest

from simulator.connection import METHOD_CALLS
from simulator.hub import NoAnswer
from tests.hub_client import device, raw, sdk

__all__ = ["device"]


async def test_a_method_call_is_answered(device, monkeypatch):
    from azure.iot.device import MethodResponse

    async with sdk(device, monkeypatch) as client:

        async def answer(request: Any) -> None:
            await client.send_method_response(
                MethodResponse.create_from_method_request(request, 207, {"name": request.name, "got": request.payload})
            )

        await asyncio.to_thread(setattr, client, "on_method_request_received", answer)
        assert await device.hub.call("uplink", "getStatus", {"x": [1]}, 5) == (
            207,
            {"name": "getStatus", "got": {"x": [1]}},
        )
        assert await device.hub.call("uplink", "getStatus") == (207, {"name": "getStatus", "got": None})


async def test_a_method_call_to_nobody_is_404_and_one_without_an_answer_504(device):
    with pytest.raises(NoAnswer, match="not connected") as error:
        await device.hub.call("uplink", "getStatus", None, 0.01)
    assert error.value.status == 404
    async with raw(device) as (client, _):
        with pytest.raises(NoAnswer, match="takes no methods"):
            await device.hub.call("uplink", "getStatus", None, 0.01)
        await client.subscribe(METHOD_CALLS)
        with pytest.raises(NoAnswer) as error:
            await device.hub.call("uplink", "getStatus", None, 0.01)
        assert error.value.status == 504
        call = await client.next_publish()
        assert call.payload == b"null"
        # Late, unknown and senseless answers are let go.
        for rid in (call.topic.partition("=")[2], "unknown"):
            await client.publish(f"$iothub/methods/res/200/?$rid={rid}", b"{")
            await client.acknowledged()


@pytest.mark.parametrize(
    "method", ["", "m" * 101, "a/b", "a?$rid=5", "a b", "a#", "a+b", "ä", "a\n", "a\0", "$a", "{a}", "/../x"]
)
async def test_a_method_with_a_name_that_iot_hub_does_not_take_is_refused(device, method):
    with pytest.raises(ValueError, match="is no name of a method"):
        await device.hub.call("uplink", method)


async def test_a_method_with_a_payload_over_the_limit_is_refused(device):
    with pytest.raises(ValueError, match="a payload of 131074 bytes is over the limit"):
        await device.hub.call("uplink", "m", "x" * 128 * 1024)


async def test_a_method_of_every_name_that_iot_hub_takes_arrives(device):
    async with raw(device) as (client, _):
        await client.subscribe(METHOD_CALLS)
        name = "!%&'*.^_`|~-09AZaz"
        calling = asyncio.create_task(device.hub.call("uplink", name))
        topic = (await client.next_publish()).topic
        assert topic.startswith(f"$iothub/methods/POST/{name}/?$rid=")
        await client.publish(f"$iothub/methods/res/200/?$rid={topic.rpartition('=')[2]}", b"1")
        assert await calling == (200, 1)

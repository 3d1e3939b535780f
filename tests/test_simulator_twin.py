"""Twins of the simulated hub: merged, versioned, refused by IoT Hub's rules, and kept."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import mqtt
from simulator.connection import TWIN_ANSWERS, TWIN_PATCHES
from simulator.device import EdgeDevice
from simulator.twin import DEPTH, Rejected, Twin
from tests.hub_client import MANIFEST, REPORTED, device, raw, sdk, until

__all__ = ["device"]


async def test_a_module_gets_its_twin_and_its_reported_patches_are_merged(device, monkeypatch):
    async with sdk(device, monkeypatch) as client:
        assert (await client.get_twin())["desired"] == {"latency_s": 10, "nested": {"a": 1, "b": 2}, "$version": 2}
        await client.patch_twin_reported_properties({"a": {"x": 1, "y": 2}, "b": [1, {"c": "ä"}]})
        await client.patch_twin_reported_properties({"a": {"x": None}, "gone": None})
        assert (await client.get_twin())["reported"] == {"a": {"y": 2}, "b": [1, {"c": "ä"}], "$version": 3}
    assert device.hub.twin("uplink").reported == {"a": {"y": 2}, "b": [1, {"c": "ä"}]}
    assert device.hub.twin("collector").reported == {}


async def test_a_desired_patch_reaches_the_module_with_its_deletions_and_its_version(device, monkeypatch):
    patches: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    async with sdk(device, monkeypatch) as client, sdk(device, monkeypatch, "collector") as neighbour:

        async def seen(patch: Any) -> None:
            loop.call_soon_threadsafe(patches.put_nowait, patch)

        def subscribe() -> None:
            client.on_twin_desired_properties_patch_received = seen
            neighbour.on_twin_desired_properties_patch_received = seen

        await asyncio.to_thread(subscribe)
        device.hub.patch_desired("uplink", {"latency_s": 5, "nested": {"b": None}})
        assert await patches.get() == {"latency_s": 5, "nested": {"b": None}, "$version": 3}
        assert (await client.get_twin())["desired"] == {"latency_s": 5, "nested": {"a": 1}, "$version": 3}
        assert patches.empty()


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"\xff", id="no UTF-8"),
        pytest.param(b"[1]", id="no object"),
        pytest.param(b'{"a": NaN}', id="no number"),
        pytest.param(b'{"a": 1e999}', id="a number that no double holds"),
        pytest.param(b'{"a": "\\ud800"}', id="half a character"),
        pytest.param(b'{"a.b": 1}', id="a dot in a name"),
        pytest.param(b'{"$a": 1}', id="a dollar in a name"),
        pytest.param(b'{"a b": 1}', id="a space in a name"),
        pytest.param(b'{"": 1}', id="no name"),
        pytest.param(json.dumps({"n" * 1025: 1}).encode(), id="a long name"),
        pytest.param(json.dumps({"a": "v" * 4097}).encode(), id="a long value"),
        pytest.param(json.dumps({f"a{i}": "v" * 4000 for i in range(9)}).encode(), id="a large section"),
        pytest.param(b'{"a": 4503599627370496}', id="a large integer"),
        pytest.param(b'{"a": [1, null]}', id="null in an array"),
        pytest.param(b'{"a":' * DEPTH + b"{}" + b"}" * DEPTH, id="eleven levels"),
        pytest.param(b'{"a":' * 900 + b"1" + b"}" * 900, id="900 levels"),
        pytest.param(b'{"a":' + b"[" * 100_000, id="brackets without end"),
    ],
)
async def test_a_reported_patch_that_breaks_a_rule_is_answered_with_400_and_changes_nothing(device, payload):
    async with raw(device) as (client, _):
        await client.subscribe(TWIN_ANSWERS)
        await client.publish(f"{REPORTED}r1", payload)
        answer = await client.next_publish()
        assert (answer.topic, answer.payload, answer.qos) == ("$iothub/twin/res/400/?$rid=r1", b"", 1)
        await client.acknowledged()
        await client.publish(f"{REPORTED}r2", b'{"a": 4503599627370495, "b": -4503599627370496}')
        assert (await client.next_publish()).topic == "$iothub/twin/res/204/?$rid=r2"
    assert device.hub.twin("uplink").reported_version == 2


async def test_who_has_not_subscribed_to_twin_answers_gets_none(device):
    async with raw(device) as (client, _):
        await client.publish("$iothub/twin/GET/?$rid=r1", b" ", packet_id=1)
        assert await client.acknowledged() == 1
        await client.send(mqtt.PINGREQ, 0, b"")
        await client.next(mqtt.PINGRESP)


async def test_answers_come_with_the_qos_that_was_subscribed(device):
    async with raw(device) as (client, _):
        assert await client.subscribe(TWIN_ANSWERS, TWIN_PATCHES, qos=0) == b"\0\0"
        await client.publish("$iothub/twin/GET/?$rid=r1", b" ")
        answer = await client.next_publish()
        assert (answer.topic, answer.qos) == ("$iothub/twin/res/200/?$rid=r1", 0)


async def test_desired_changes_during_an_outage_are_not_sent_afterwards(device):
    async with raw(device) as (client, _):
        await client.subscribe(TWIN_PATCHES)
    await until(device, lambda: not device.hub._connections)
    device.hub.patch_desired("uplink", {"missed": 1})
    async with raw(device) as (client, connack):
        assert connack == b"\1\0"
        device.hub.patch_desired("uplink", {"seen": 2})
        assert json.loads((await client.next_publish()).payload) == {"seen": 2, "$version": 4}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 100) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner.filter(lambda v: v is not None), max_size=2) | st.dictionaries(st.sampled_from("abc"), inner)
    ),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), json_values), max_size=5))
def test_merge_patches_follow_rfc_7396(patches):
    def slowly(target: Any, patch: Any) -> Any:
        if not isinstance(patch, dict):
            return patch
        result = dict(target) if isinstance(target, dict) else {}
        for name, value in patch.items():
            if value is None:
                result.pop(name, None)
            else:
                result[name] = slowly(result.get(name), value)
        return result

    def has_null_in_list(value: Any) -> bool:
        if isinstance(value, dict):
            return any(map(has_null_in_list, value.values()))
        return isinstance(value, list) and any(v is None or has_null_in_list(v) for v in value)

    twin, expected, version = Twin(), {}, 1
    for patch in patches:
        try:
            twin.patch_reported(patch)
        except Rejected:
            assert has_null_in_list(patch)
            continue
        expected, version = slowly(expected, patch), version + 1
    assert (twin.reported, twin.reported_version) == (expected, version)


async def test_twins_sessions_and_desired_changes_outlive_a_restart(tmp_path):
    state = tmp_path / "device"
    async with EdgeDevice(MANIFEST, state, modules_root=tmp_path) as device:
        async with raw(device) as (client, _):
            await client.subscribe(TWIN_ANSWERS, TWIN_PATCHES)
            await client.publish(f"{REPORTED}r1", b'{"a": 1}')
            await client.next_publish()
        device.hub.patch_desired("uplink", {"latency_s": 5})
    async with EdgeDevice(MANIFEST, state, modules_root=tmp_path) as device:
        twin = device.hub.twin("uplink")
        assert (twin.reported, twin.reported_version) == ({"a": 1}, 2)
        assert (twin.desired["latency_s"], twin.desired_version) == (5, 3)
        async with raw(device) as (client, connack):
            assert connack == b"\1\0"
            device.hub.patch_desired("uplink", {"latency_s": 6})
            assert json.loads((await client.next_publish()).payload) == {"latency_s": 6, "$version": 4}


async def test_another_deployment_replaces_the_desired_section(device):
    device.hub.patch_desired("uplink", {"latency_s": 5})
    async with raw(device) as (client, _):
        await client.subscribe(TWIN_PATCHES)
        device.hub.set_desired("uplink", {"latency_s": 7})
        assert json.loads((await client.next_publish()).payload) == {"latency_s": 7, "$version": 4}
    assert device.hub.twin("uplink").desired == {"latency_s": 7}
    with pytest.raises(Rejected):
        device.hub.set_desired("uplink", {"a.b": 1})
    assert device.hub.twin("uplink").desired == {"latency_s": 7}

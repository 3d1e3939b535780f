"""Routes, conditions and store-and-forward: as edgeHub does it, between unmodified clients and by raw files."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from azure.iot.device import Message
from azure.iot.device.aio import IoTHubModuleClient
from hypothesis import given
from hypothesis import strategies as st

from edge.twin import merge_patch
from simulator import layers, router
from simulator.condition import UNDEFINED, Condition
from simulator.device import EdgeDevice
from simulator.router import Queue
from simulator.routes import Route, problems
from simulator.twin import difference

SECONDS = 15
ROUTES = {
    "alarms": {
        "route": "FROM /messages/modules/collector/outputs/alarms WHERE as_number(level) > 3"
        ' INTO BrokeredEndpoint("/modules/uplink/inputs/urgent")',
        "priority": 1,
    },
    "hot": "FROM /messages/modules/collector/* WHERE $body.kind = 'hot' AND $contentEncoding = 'utf-8' INTO $upstream",
    "all": 'FROM /messages/modules/collector/outputs/* INTO BrokeredEndpoint("/modules/uplink/inputs/other")',
    "twins": "FROM /twinChangeNotifications WHERE twin_change_includes(properties.reported.fault) INTO $upstream",
}


def manifest(routes: dict[str, Any], ttl_s: int = 7200) -> dict[str, Any]:
    hub = {"routes": routes, "storeAndForwardConfiguration": {"timeToLiveSecs": ttl_s}}
    return {
        "modulesContent": {
            "$edgeAgent": {"properties.desired": {"modules": {"collector": {}, "uplink": {}}}},
            "$edgeHub": {"properties.desired": hub},
            "uplink": {"properties.desired": {"a": 1, "b": {"c": 1, "d": 2}}},
        }
    }


@asynccontextmanager
async def edge(folder: Path, routes: dict[str, Any] = ROUTES, ttl_s: int = 7200) -> AsyncIterator[EdgeDevice]:
    async with EdgeDevice(manifest(routes, ttl_s), folder / "device", modules_root=folder) as device:
        yield device


@asynccontextmanager
async def sdk(device: EdgeDevice, module: str) -> AsyncIterator[Any]:
    before = dict(os.environ)
    os.environ.update(device.environment(module))
    try:
        client = await asyncio.to_thread(IoTHubModuleClient.create_from_edge_environment)
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        async with asyncio.timeout(SECONDS):
            await client.connect()
            yield client
    finally:
        await asyncio.wait_for(client.shutdown(), SECONDS)


async def listen(client: Any, handler_name: str = "on_message_received") -> "asyncio.Queue[Any]":
    """What a handler of the client gets. It runs in a thread of the SDK; setting it blocks until the hub answers."""
    messages: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def handler(message: Any) -> None:
        loop.call_soon_threadsafe(messages.put_nowait, message)

    await asyncio.to_thread(setattr, client, handler_name, handler)
    return messages


def json_message(document: Any, **properties: str) -> Message:
    message = Message(json.dumps(document), content_encoding="utf-8", content_type="application/json")
    message.custom_properties.update(properties)
    return message


def stored(device: EdgeDevice) -> list[dict[str, Any]]:
    files = sorted(device.hub.messages_dir.rglob("*.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


async def until(device: EdgeDevice, condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await device.hub.changed(SECONDS)


async def test_outputs_reach_inputs_and_the_cloud_as_routes_and_their_conditions_say(tmp_path):
    async with edge(tmp_path) as device, sdk(device, "collector") as sender, sdk(device, "uplink") as receiver:
        inbox = await listen(receiver)
        await sender.send_message_to_output(json_message({"kind": "hot"}, level="4", note="a b&c"), "alarms")
        got = {}
        for _ in range(2):
            message = await asyncio.wait_for(inbox.get(), SECONDS)
            got[message.input_name] = message
        assert got.keys() == {"urgent", "other"}
        properties = got["urgent"].custom_properties
        assert properties == {"level": "4", "note": "a b&c", "$.cdid": device.device_id, "$.cmid": "collector"}
        assert json.loads(got["urgent"].data) == {"kind": "hot"}
        assert device.hub.counters["messages"] == 1
        await sender.send_message_to_output(json_message({"kind": "cold"}, level="3"), "alarms")
        assert (await asyncio.wait_for(inbox.get(), SECONDS)).input_name == "other"
        await sender.send_message(Message("for nobody"))
        await receiver.send_message(Message("for nobody"))
        assert device.hub.counters["no_route"] == 2
        await sender.patch_twin_reported_properties({"fine": 1})
        await sender.patch_twin_reported_properties({"fault": "sensor"})
        assert [line["SystemProperties"]["connectionModuleId"] for line in stored(device)] == ["collector"] * 2


async def test_what_a_module_has_not_acknowledged_waits_for_it_also_over_a_restart(tmp_path):
    async with edge(tmp_path) as device, sdk(device, "collector") as sender:
        for number in range(3):
            await sender.send_message_to_output(json_message(number), "any")
        assert device.hub.router.waiting() == {"uplink/other": 3}
    async with edge(tmp_path) as device, sdk(device, "uplink") as receiver:
        inbox = await listen(receiver)
        assert [json.loads((await asyncio.wait_for(inbox.get(), SECONDS)).data) for _ in range(3)] == [0, 1, 2]
        await until(device, lambda: not device.hub.router.waiting())


async def test_what_waits_for_a_module_comes_by_priority_and_not_behind_its_time(tmp_path):
    outputs = {"short": {"timeToLiveSecs": 60}, "late": {"priority": 9}, "first": {"priority": 1}}
    source, sink = "/messages/modules/collector/outputs", 'BrokeredEndpoint("/modules/uplink/inputs/in")'
    routes = {name: {"route": f"FROM {source}/{name} INTO {sink}", **more} for name, more in outputs.items()}
    async with edge(tmp_path, routes) as device, sdk(device, "collector") as sender:
        for name in routes:
            await sender.send_message_to_output(json_message(name), name)
        device.hub.clock.run(1e4)
        await device.hub.clock.sleep(61)
        device.hub.clock.run(0.5)  # at 1 it would show the machine's time again
        async with sdk(device, "uplink") as receiver:
            inbox = await listen(receiver)
            assert [json.loads((await asyncio.wait_for(inbox.get(), SECONDS)).data) for _ in range(2)] == [
                "first",
                "late",
            ]
            await until(device, lambda: not device.hub.router.waiting())
        assert device.hub.counters["expired_messages"] == 1


async def test_a_cut_upstream_keeps_telemetry_in_order_and_twins_follow_as_one_patch(tmp_path):
    up = {"up": "FROM /messages/* INTO $upstream"}
    async with edge(tmp_path, up) as device, sdk(device, "uplink") as client:
        twin = await client.get_twin()
        patches = await listen(client, "on_twin_desired_properties_patch_received")
        device.hub.cut_upstream(True)
        for number in range(5):
            await client.send_message(Message(str(number)))
        await client.patch_twin_reported_properties({"offline": True})
        device.hub.patch_desired("uplink", {"a": None})
        device.hub.patch_desired("uplink", {"b": {"c": 3}})
        assert (await client.get_twin())["desired"] == twin["desired"]
        assert (stored(device), patches.qsize()) == ([], 0)
    async with edge(tmp_path, up) as device, sdk(device, "uplink") as client:
        assert (device.hub.router.waiting(), len(stored(device))) == ({}, 5)
        device.hub.cut_upstream(True)
        await client.send_message(Message("5"))
        assert device.hub.router.waiting() == {"$upstream": 1}
        device.hub.patch_desired("uplink", {"e": 1})
        device.hub.patch_desired("uplink", {"a": 2})
        await client.get_twin()
        patches = await listen(client, "on_twin_desired_properties_patch_received")
        device.hub.cut_upstream(False)
        patch = await asyncio.wait_for(patches.get(), SECONDS)
        assert patch == {"e": 1, "a": 2, "$version": device.hub.twin("uplink").desired_version}
        bodies = [line["Body"] for line in stored(device)]
        assert bodies == ["MA==", "MQ==", "Mg==", "Mw==", "NA==", "NQ=="]
        assert device.hub.twin("uplink").reported == {"offline": True}


def test_a_queue_drains_by_priority_then_in_order_and_skips_what_has_expired(tmp_path):
    queue, counters = Queue(tmp_path / "q", lambda: 1000.0), Counter()
    for body, priority, ttl_s in [(b"late", 9, -1), (b"first", 1, 60), (b"gone", 1, 10), (b"second", 1, 60)]:
        queue.put(router.Message("m", "d", "m", {"x": None}, body), priority, ttl_s)
    again, bodies = Queue(tmp_path / "q", lambda: 1030.0), []
    while first := again.first(counters):
        bodies.append(first[1].body)
        assert first[1].bag == {"x": None}
        again.drop(first[0])
    assert bodies == [b"first", b"second", b"late"]
    assert counters["expired_messages"] == 1
    assert not list((tmp_path / "q").iterdir())


PROPERTIES = {"level": "4", "name": "axle", "$body.n": 3.0, "$body.kind": "hot", "$body.on": True, "$body.nil": None}


def lookup(name: str) -> Any:
    return PROPERTIES.get(name, UNDEFINED)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as_number(level) > 3", True),
        ("as_number(name) > 3 OR name = 'axle'", True),
        ("as_number(name) > 3", False),
        ("NOT (as_number(name) > 3)", False),
        ("$body.n = 3 AND $body.kind <> 'cold'", True),
        ("$body.kind > 1", False),
        ("$body.nil = null AND is_null($body.nil)", True),
        ("$body.on", True),
        ("is_defined(missing) = false", True),
        ("missing = 'x'", False),
        ("missing <> 'x'", False),
        ("(missing ?? 'x') = 'x'", True),
        ("1 + 2 * 3 - 4 / 2 = 5 AND -1 < 0 AND 7 % 4 = 3", True),
        ("1 / 0 = 0 OR 1 / 0 <> 0", False),
        ("name || '!' = concat('ax', 'le', '!')", True),
        ("substring(name, 1, 2) = 'xl' AND index_of(name, 'l') = 2", True),
        ("starts_with(name, 'ax') AND ends_with(name, 'le') AND contains(name, 'xl')", True),
        ("upper(name) = 'AXLE' AND length(lower(name)) = 4", True),
        (
            "power(2, 3) = 8 AND square(3) = sqrt(81) AND abs(-1) = sign(5) AND floor(1.5) = 1 AND ceiling(0.5) = 1",
            True,
        ),
        ("name = 'it\\'s' OR name = \"axle\"", True),
        ("false AND missing = 'x'", False),
        ("true OR missing = 'x'", True),
    ],
)
def test_conditions_mean_what_edge_hub_makes_of_them(text, expected):
    assert Condition(text).holds(lookup) is expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("level > 3", "> between text and a number; write as_number(…)"),
        ("name", "the condition is text, not true or false"),
        ("length(3) = 1", "an argument of length is a number, not text"),
        ("power(2) = 1", "power takes 2 arguments, not 1"),
        ("concat() = ''", "there is no function concat with so few arguments"),
        ("frob(1)", "there is no function frob"),
        ("a = ", "a value is missing before 'the end'"),
        ("(a = 'x'", "a ) is missing before 'the end'"),
        ("a = 'x' b", "'b' is not expected"),
        ("a = `x`", "'`x`' is not understood"),
        ("(" * 60 + "true" + ")" * 60, "over 50 levels deep"),
        ("not " * 60 + "true", "over 50 levels deep"),
    ],
)
def test_a_condition_that_edge_hub_would_not_compile_is_explained(text, problem):
    found = list(problems(f"FROM /* WHERE {text} INTO $upstream", []))
    assert [line for line, _ in found] == [f"condition: {problem}"]


@pytest.mark.parametrize(
    ("definition", "problem"),
    [
        ({"route": "FROM /* INTO $upstream", "priority": "high"}, "'high' is no priority"),
        ({"route": "FROM /* INTO $upstream", "priority": True}, "True is no priority"),
        ({"route": "FROM /* INTO $upstream", "timeToLiveSecs": "x"}, "'x' is no time"),
        ("FROM /* INTO nowhere", "nowhere is no sink"),
        ("FROM /* WHERE level > 3 INTO $upstream", "condition: > between text and a number"),
        (5, "is no route"),
        ({"priority": 1}, "is no route"),
    ],
)
async def test_a_route_that_a_twin_brought_and_that_is_none_is_left_out_and_said(tmp_path, caplog, definition, problem):
    async with edge(tmp_path, {"up": "FROM /messages/* INTO $upstream"}) as device:
        device.hub.patch_desired("$edgeHub", {"routes": {"bad": definition}})
        assert f"a route is left out: bad: {problem}" in caplog.text
        device.hub.router.route(router.Message("uplink", device.device_id, "uplink", {}, b"x"))
        assert len(stored(device)) == 1


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 400, "-1e999", "NaN"])
@pytest.mark.parametrize("condition", ["floor($body.n) = 1", "$body.n > 3 AND ceiling($body.n) <> 1"])
def test_a_number_that_no_double_holds_is_undefined_in_a_condition(number, condition):
    bag = {"$.ct": "application/json", "$.ce": "utf-8"}
    message = router.Message("uplink", "car", "uplink", bag, f'{{"n": {number}}}'.encode())
    assert not Condition(condition).holds(router._Names(message))


def test_a_constant_that_no_double_holds_is_undefined():
    assert not Condition("floor(1e999) = 1").holds(lookup)


@given(st.text(alphabet="abc$.{}[]()'\"<>=!|?&+-*/% 019ANDORNOTnullbody", max_size=60))
def test_no_text_crashes_a_condition(text):
    try:
        condition = Condition(text)
    except ValueError:
        return
    assert condition.holds(lookup) in (True, False)


@pytest.mark.parametrize(
    ("source", "taken"),
    [
        (
            "/messages/modules/Collector/outputs/a",
            {"/*", "/messages/*", "collector/*", "outputs/*", "a"},
        ),
        ("/messages/modules/collector", {"/*", "/messages/*", "collector/*"}),
        ("/messages/modules/collector2/outputs/a", {"/*", "/messages/*"}),
        ("/twinChangeNotifications", {"/*"}),
    ],
)
def test_sources_are_prefixes_by_segment(source, taken):
    root = "/messages/modules/collector"
    sources = {"/*": "/*", "/messages/*": "/messages/*", "collector/*": f"{root}/*"}
    sources |= {"outputs/*": f"{root}/outputs/*", "a": f"{root}/outputs/a"}
    found = {name for name, text in sources.items() if Route("r", f"FROM {text} INTO $upstream").takes(source, lookup)}
    assert found == taken


JSON = st.recursive(
    st.integers(0, 3) | st.sampled_from("ab"), lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
)
SECTION = st.dictionaries(st.sampled_from("xyz"), JSON, max_size=3)


@given(SECTION, SECTION)
def test_the_patch_after_an_outage_makes_the_new_section_of_the_old(old, new):
    assert merge_patch(old, difference(old, new)) == new
    assert (difference(old, new) == {}) == (old == new)


def test_layers_replace_key_by_key_and_the_highest_base_wins():
    def one(priority: int, content: dict[str, Any]) -> dict[str, Any]:
        return {"priority": priority, "content": {"modulesContent": content}}

    low = one(1, {"$edgeAgent": {"properties.desired": {"modules": {"a": {}}}}})
    high = one(5, {"$edgeAgent": {"properties.desired": {"modules": {"b": {}}}}, "b": {"properties.desired": {"x": 1}}})
    first = one(2, {"b": {"properties.desired.t": {"y": 1, "z": 1}}})
    second = one(9, {"b": {"properties.desired.t": {"y": 2}}, "$edgeAgent": {"properties.desired.modules.c": {"q": 1}}})
    content = layers.combine([second, low, first, high])["modulesContent"]
    assert content["$edgeAgent"]["properties.desired"]["modules"] == {"b": {}, "c": {"q": 1}}
    assert content["b"]["properties.desired"] == {"x": 1, "t": {"y": 2}}
    assert layers.combine([first, second]) is None

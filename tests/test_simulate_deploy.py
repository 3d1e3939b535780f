"""A deployment to a device that runs: what changes is made anew, the rest goes on; and what the cloud then gets."""

import asyncio
import json
from typing import Any

import pytest

from edge.errors import InputError
from simulator import events
from simulator.connection import METHOD_CALLS
from simulator.http import Request
from simulator.router import Message
from tests.test_simulator_device import SECONDS, kind, manifest, root, running

__all__ = ["root"]


def with_twin(document: dict[str, Any], module: str, desired: dict[str, Any]) -> dict[str, Any]:
    document["modulesContent"][module] = {"properties.desired": desired}
    return document


@pytest.mark.process
async def test_only_changed_modules_are_started_anew(root):
    async with running(root, manifest(stays={}, changes={}, goes={})) as run:
        starts = {start["env"]["IOTEDGE_MODULEID"]: start for start in [await run.next_start() for _ in range(3)]}
        device, gone = run.device, run.device.modules["goes"].process
        socket = device.environment("goes")["IOTEDGE_WORKLOADURI"].removeprefix("unix://")
        await device.deploy(with_twin(manifest(stays={}, changes=kind("other"), comes={}), "comes", {"x": 1}))
        again = [await run.next_start() for _ in range(2)]
        assert {start["env"]["IOTEDGE_MODULEID"] for start in again} == {"changes", "comes"}
        assert device.modules["stays"].pid == starts["stays"]["pid"]
        assert device.modules["changes"].pid != starts["changes"]["pid"]
        assert gone.returncode is not None
        assert (
            device.modules.keys()
            == {"stays", "changes", "comes"}
            == {*device.hub.identities.keys}
            - {
                "",
                "$edgeAgent",
                "$edgeHub",
            }
        )
        assert device.hub.twin("comes").desired == {"x": 1}
        with pytest.raises(FileNotFoundError):
            await asyncio.open_unix_connection(socket)


@pytest.mark.process
async def test_a_deployment_that_cannot_be_run_changes_nothing(root):
    async with running(root, manifest(one={})) as run:
        start = await run.next_start()
        for bad in (
            manifest(one=kind("other"), two={"settings": {"image": "not-built:1"}}),
            manifest(one={"settings": {"image": "probe:1", "createOptions": "{"}}),
            with_twin(manifest(one=kind("other")), "one", {"a.b": 1}),
        ):
            with pytest.raises(InputError):
                await run.device.deploy(bad)
        assert run.device.modules["one"].pid == start["pid"]
        assert run.device.modules.keys() == {"one"}
        await run.device.deploy(manifest(one=kind("other")))
        assert (await run.next_start())["env"]["KIND"] == "other"


async def test_a_consumer_gets_what_was_stored_and_what_comes(root):
    async with running(root, {"modulesContent": {"$edgeAgent": {"properties.desired": {"modules": {}}}}}) as run:
        hub = run.device.hub

        def send(number: int) -> None:
            hub.router.route(Message("one", hub.device, "one", {"n": str(number), "$.mid": "m"}, b"%d" % number))
            hub.tell()

        async with asyncio.timeout(SECONDS):
            send(1)
            send(2)
            consumer = events.events(hub, after=1)
            event = await anext(consumer)
            assert (event.sequence, event.body, event.properties) == (2, b"2", {"n": "2"})
            assert (event.device, event.module, event.system_properties["messageId"]) == (hub.device, "one", "m")
            waiting = asyncio.create_task(anext(consumer))
            await asyncio.sleep(0)
            send(3)
            assert (await waiting).body == b"3"
        assert [event.sequence for event in events.stored(hub.messages_dir)] == [1, 2, 3]


async def test_a_method_call_waits_for_a_module_that_is_not_there_yet(root):
    async with running(root, {"modulesContent": {"$edgeAgent": {"properties.desired": {"modules": {}}}}}) as run:
        service = run.device.service
        started = asyncio.get_running_loop().time()
        body = {"methodName": "x", "connectTimeoutInSeconds": 1}
        parts = ("twins", run.device.device_id, "modules", "$edgeAgent", "methods")
        answer = await service.answer(Request("POST", parts, {}, {}, json.dumps(body).encode()))
        assert answer.status == 404
        assert "is not connected" in answer.document["Message"]
        assert asyncio.get_running_loop().time() - started >= 0.9
        assert METHOD_CALLS not in run.device.hub.subscriptions["$edgeAgent"]

"""A state folder that somebody has damaged: what it is, in one line with the way out."""

import asyncio
import json
from pathlib import Path

import pytest

from edge.errors import InputError
from simulator import sockets
from simulator.device import EdgeDevice, free_address
from simulator.router import Message
from simulator.secret import Secret
from tests.hub_client import CAR, MANIFEST, SECONDS


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("hub.json", "{", r"hub\.json: is no state of a hub .*; delete it"),
        ("hub.json", "[]", r"hub\.json: is no state of a hub .*; delete it"),
        ("hub.json", '{"twins": []}', r"hub\.json: is no state of a hub .*; delete it"),
        ("hub.json", '{"twins": {"uplink": 5}}', r"hub\.json: is no state of a hub .*; delete it"),
        ("hub.json", '{"twins": {"uplink": {"desired": 5}}}', r"hub\.json: is no state of a hub .*; delete it"),
        ("hub.json", '{"subscriptions": {"uplink": {"a": "b"}}}', r"hub\.json: is no state of a hub .*; delete it"),
        ("registry.json", "{", r"registry\.json: is no registry .*; delete it"),
        ("registry.json", "[]", r"registry\.json: is no registry .*; delete it"),
        ("registry.json", '{"identities": []}', r"registry\.json: is no registry .*; delete it"),
        ("registry.json", '{"identities": {"a": {}}}', r"registry\.json: is no registry .*; delete it"),
        ("identity.json", "{", r"identity\.json: holds no secret .*; delete it"),
        ("identity.json", '{"secret": 5}', r"identity\.json: holds no secret .*; delete it"),
        ("certificates/ca.pem", "x", r"certificates: the CA cannot be read .*; delete the folder"),
        ("certificates/ca.key", "x", r"certificates: the CA cannot be read .*; delete the folder"),
        ("certificates/{address}.key", "x", r"certificates: .* cannot be read .*; delete the folder"),
        ("certificates/clients/car.pem", "x", r"clients/car\.pem: is no certificate .*; PEM"),
    ],
)
async def test_what_is_damaged_is_named(tmp_path: Path, name: str, text: str, problem: str) -> None:
    address = free_address()
    async with EdgeDevice(MANIFEST, tmp_path, modules_root=tmp_path, address=address):
        pass
    place = tmp_path / name.format(address=address)
    place.parent.mkdir(exist_ok=True)
    place.write_text(text)
    with pytest.raises(InputError, match=problem):
        async with EdgeDevice(MANIFEST, tmp_path, modules_root=tmp_path, address=address):
            pass


async def test_half_a_character_from_the_service_api_spoils_no_registry(tmp_path: Path) -> None:
    for _ in range(2):
        async with EdgeDevice(MANIFEST, tmp_path, modules_root=tmp_path) as device:
            known = list(device.registry.identities())
            if "truck/" not in known:
                device.registry.put("truck", "", {"statusReason": "\ud800"}, None)
    assert known == ["", "truck/"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"expires": null, "body": 5}'])
async def test_a_waiting_message_that_is_damaged_is_set_aside_and_the_next_one_goes(tmp_path: Path, text: str) -> None:
    async with EdgeDevice(MANIFEST, tmp_path, modules_root=tmp_path) as device:
        device.hub.cut_upstream(True)
        for body in (b"first", b"second"):
            device.hub.router.route(Message("uplink", CAR, "uplink", {}, body))
    queue = tmp_path / "queues" / "$upstream"
    first, _ = sorted(queue.iterdir())
    first.write_text(text)
    (queue / "README").write_text("not ours")
    async with EdgeDevice(MANIFEST, tmp_path, modules_root=tmp_path) as device:
        async with asyncio.timeout(SECONDS):
            while not device.hub.counters["messages"]:
                await device.hub.changed(SECONDS)
        assert device.hub.counters["damaged_messages"] == 1
        assert device.hub.router.waiting() == {}
    assert sorted(path.name for path in queue.iterdir()) == [f"{first.name}.damaged", "README"]


@pytest.mark.parametrize("name", ["a/b", "", "a b", "ü", "x" * 129])
def test_a_device_has_a_name_that_iot_hub_takes(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"device id .* is none; "):
        EdgeDevice(MANIFEST, tmp_path, modules_root=tmp_path, device_id=name)


def test_two_simulators_that_sweep_at_the_same_time_do_not_meet(tmp_path: Path, monkeypatch) -> None:
    gone = tmp_path / "bordnetz-0123456789ab-999999999"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [gone])
    sockets.sweep(tmp_path)


def test_keys_stay_the_same(tmp_path: Path) -> None:
    first, second = Secret(tmp_path / "identity.json"), Secret(tmp_path / "identity.json")
    assert first.key("uplink") == second.key("uplink") != first.key("collector")
    assert json.loads((tmp_path / "identity.json").read_text()).keys() == {"secret"}

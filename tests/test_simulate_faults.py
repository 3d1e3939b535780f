"""Faults as switches: what each does to an unmodified client, what is recorded of it, and schedules of them."""

import asyncio
import json
import os
import shutil
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge.errors import InputError
from simulator import http, mqtt, sas, sockets
from simulator.clock import Clock
from simulator.device import EdgeDevice
from simulator.faults import Faults
from simulator.switchboard import Schedule, Step, Switchboard, load
from tests.hub_client import EVENTS, MANIFEST, REPORTED, SECONDS, raw, token, until

WORKLOAD = "trust-bundle?api-version=2022-08-03"


@pytest.fixture
async def device(tmp_path: Path) -> AsyncIterator[EdgeDevice]:
    async with EdgeDevice(MANIFEST, tmp_path / "device", modules_root=tmp_path) as device:
        yield device


@pytest.fixture
async def switches(device: EdgeDevice) -> AsyncIterator[Switchboard]:
    switches = Switchboard(device)
    yield switches
    await switches.stop()


def recorded(device: EdgeDevice) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (device._state / "faults.jsonl").read_text().splitlines()]


async def test_a_thrown_switch_acts_counts_down_and_is_recorded(device, switches):
    thrown = await switches.throw({"refuse": 2, "refuse_code": mqtt.UNAVAILABLE})
    assert thrown.refuse == 2
    for left in (1, 0):
        async with raw_refused(device) as code:
            assert code == mqtt.UNAVAILABLE
        assert device.hub.faults.refuse == left
    async with raw(device) as (_, connack):
        assert connack[1] == mqtt.ACCEPTED
    assert device.hub.counters["fault: refuse"] == 2
    events = recorded(device)
    assert [{key: event[key] for key in event if key != "time"} for event in events] == [
        {"threw": {"refuse": 2, "refuse_code": mqtt.UNAVAILABLE}},
        {"did": "refuse", "to": "uplink"},
        {"did": "refuse", "to": "uplink"},
    ]
    assert all(abs(event["time"] - time.time()) < 600 for event in events)


def raw_refused(device: EdgeDevice) -> Any:
    """The code of a CONNACK."""

    class Refused:
        async def __aenter__(self) -> int:
            self._raw = raw(device)
            _, connack = await self._raw.__aenter__()
            return connack[1]

        async def __aexit__(self, *error: object) -> None:
            await self._raw.__aexit__(None, None, None)

    return Refused()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"refse": 1}, "there is no fault refse; did you mean refuse?"),
        ({"xyz": 1}, "there is no fault xyz; known are silent, silence_count, refuse"),
        ({"refuse": "x"}, "Expected `int`, got `str` - at `$.refuse`"),
        ({"time_rate": 0}, r"Expected `float` >= 0.001 - at `$.time_rate`"),
    ],
)
async def test_what_is_no_switch_is_refused_and_nothing_is_thrown(device, switches, changes, problem):
    with pytest.raises(InputError) as caught:
        await switches.throw({"forget_sessions": True, **changes})
    assert problem in str(caught.value)
    assert device.hub.faults == Faults()


async def test_a_twin_answer_is_swallowed_and_its_request_acknowledged(device, switches):
    await switches.throw({"no_twin_answer": 2})
    async with raw(device) as (client, _):
        await client.subscribe("$iothub/twin/res/#")
        for number, topic in enumerate(("$iothub/twin/GET/?$rid=", REPORTED, REPORTED), start=1):
            await client.publish(f"{topic}{number}", b'{"a": 1}', packet_id=number)
            if number == 3:
                assert (await client.next_publish()).topic == "$iothub/twin/res/204/?$rid=3"
            assert await client.acknowledged() == number
    assert device.hub.counters["fault: no_twin_answer"] == 2
    assert device.hub.twin("uplink").reported_version == 3


async def test_switches_that_are_off_are_not_told_again(device, switches):
    thrown = await switches.throw({"puback_delay_s": 0, "time_rate": 1, "refuse": 1})
    assert thrown.on() == {"refuse": 1}


async def test_late_pubacks_come_in_order_and_late(device, switches):
    await switches.throw({"puback_delay_s": 0.3})
    async with raw(device) as (client, _):
        began = time.monotonic()
        await client.publish(EVENTS, b"1", packet_id=1)
        await client.publish(EVENTS, b"2", packet_id=2)
        assert [await client.acknowledged(), await client.acknowledged()] == [1, 2]
        assert time.monotonic() - began >= 0.3
    assert device.hub.counters["fault: puback_delay_s"] == 2


async def test_a_throttled_hub_acknowledges_no_more_than_so_many_a_second(device, switches):
    await switches.throw({"throttle_per_s": 20})
    async with raw(device) as (client, _):
        began = time.monotonic()
        for number in range(1, 9):
            await client.publish(EVENTS, b"x", packet_id=number)
        assert [await client.acknowledged() for _ in range(8)] == list(range(1, 9))
        assert time.monotonic() - began >= 7 / 20
        await switches.throw({"throttle_per_s": 0})
        await client.publish(EVENTS, b"x", packet_id=9)
        assert await client.acknowledged() == 9
    assert device.hub.counters["fault: throttle_per_s"] == 8


async def test_a_storm_cuts_clients_off_until_it_ends(device, switches):
    await switches.throw({"disconnect_every_s": 0.05})
    for _ in range(3):
        async with raw(device) as (client, _):
            assert await client.is_closed()
    await switches.throw({"disconnect_every_s": 0})
    async with raw(device) as (client, _):
        await client.publish(EVENTS, b"x")
        assert await client.acknowledged() == 1
    assert device.hub.counters["fault: disconnect_every_s"] >= 3


async def test_without_workload_no_token_is_signed(device, switches):
    socket = device._sockets.path("uplink")
    assert (await http.ask(socket, "GET", f"/{WORKLOAD}")).status == 200
    await switches.throw({"workload_down": True})
    with pytest.raises((OSError, EOFError)):
        await http.ask(socket, "GET", f"/{WORKLOAD}")
    await switches.throw({"workload_down": False})
    assert (await http.ask(socket, "GET", f"/{WORKLOAD}")).status == 200


async def test_an_expired_certificate_cuts_clients_off_and_lets_none_in(device, switches):
    async with raw(device) as (client, _):
        await switches.throw({"certificate_expired": True})
        assert await client.is_closed()
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        async with raw(device):
            pass
    await switches.throw({"certificate_expired": False})
    async with raw(device) as (_, connack):
        assert connack[1] == mqtt.ACCEPTED


async def test_a_token_expires_by_the_clock_of_the_cloud(device, switches):
    old = token(device, lifetime_s=60)
    async with raw(device, password=old) as (client, _):
        await switches.throw({"time_rate": 100_000})
        assert await client.is_closed()  # edgeHub looks every five minutes, which pass in 3 ms
    assert device.hub.counters["expired"] == 1
    async with raw(device, password=old) as (_, connack):
        assert connack[1] == mqtt.NOT_AUTHORISED
    assert device.hub.clock.now() > time.time() + sas.CLOCK_SKEW_SECONDS


async def test_a_clock_wakes_its_sleepers_sooner_when_it_is_made_faster():
    clock = Clock()
    sleeper = asyncio.create_task(clock.sleep(86_400))
    await asyncio.sleep(0)
    clock.run(1e7)
    await asyncio.wait_for(sleeper, SECONDS)
    before = clock.passed()
    clock.run(1)
    assert 0 <= clock.passed() - before < 1e9


async def test_a_clock_that_runs_as_the_machines_again_shows_its_time_and_who_sleeps_by_it_sleeps_no_longer():
    clock = Clock()
    clock.run(1e7)
    sleeper = asyncio.create_task(clock.sleep(1e6))
    await asyncio.sleep(0)
    assert clock.now() >= time.time()
    clock.run(1e6)
    clock.run(1)
    assert abs(clock.now() - time.time()) < 1
    clock.run(1e7)
    await asyncio.wait_for(sleeper, SECONDS)


async def test_tokens_are_good_again_when_the_clock_runs_as_before(device, switches):
    await switches.throw({"time_rate": 1e6})
    await asyncio.sleep(0.02)
    async with raw(device) as (_, connack):
        assert connack[1] == mqtt.NOT_AUTHORISED
    await switches.throw({"time_rate": 1})
    async with raw(device) as (_, connack):
        assert connack[1] == mqtt.ACCEPTED


async def test_a_schedule_throws_its_steps_by_the_clock_and_begins_anew(device, switches):
    steps = [Step(0.04, {"refuse_code": 3}), Step(0.0, {"no_suback": 1})]
    running = asyncio.create_task(switches.run(Schedule(steps, repeat_s=1)))
    try:
        await until(device, lambda: sum("threw" in event for event in recorded_or_none(device)) >= 3)
    finally:
        running.cancel()
    threw = [event["threw"] for event in recorded(device)][:3]
    assert threw == [{"no_suback": 1}, {"refuse_code": 3}, {"no_suback": 1}]


def recorded_or_none(device: EdgeDevice) -> list[dict[str, Any]]:
    return recorded(device) if (device._state / "faults.jsonl").exists() else []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is no schedule of faults: Input data was truncated"),
        ('{"steps": [{"at_s": -1, "faults": {}}]}', "Expected `float` >= 0.0 - at `$.steps[0].at_s`"),
        (
            '{"steps": [{"at_s": 1, "faults": {"refus": 1}}]}',
            "steps[0].faults: there is no fault refus; did you mean",
        ),
        ('{"repeat_s": 5, "steps": [{"at_s": 5, "faults": {}}]}', "steps[0].at_s: 5 is behind repeat_s; below 5"),
    ],
)
def test_a_wrong_schedule_says_what_is_wrong(tmp_path, text, problem):
    path = tmp_path / "faults.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load(path)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_the_schedule_of_the_docs_is_in_order(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "simulator.md").read_text()
    path = tmp_path / "faults.json"
    path.write_text(page.partition("```json")[2].partition("```")[0])
    assert [step.at_s for step in load(path).steps] == [10, 40, 60, 90]
    table = page.partition("## Faults")[2].partition("##")[0]
    assert all(f"`{name}`" in table for name in Faults.__struct_fields__)


def test_sockets_of_simulators_that_were_killed_are_swept_away(tmp_path):
    gone, own, other = (tmp_path / f"bordnetz-0123456789ab-{pid}" for pid in (2**22 + 1, os.getpid(), "x"))
    for folder in (gone, own, other):
        folder.mkdir()
        (folder / "a.sock").touch()
    sockets.sweep(tmp_path)
    assert (gone.exists(), own.exists(), other.exists()) == (False, True, True)
    shutil.rmtree(own)

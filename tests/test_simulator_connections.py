"""Who may connect to the simulated hub, for how long, and with which session."""

import asyncio
import os
import ssl
import time

import pytest

from simulator import broker, mqtt, sas
from simulator.broker import PORT
from simulator.connection import TWIN_PATCHES
from simulator.device import HUB_NAME
from tests.hub_client import CAR, EVENTS, SECONDS, device, field, raw, sdk, token, until

__all__ = ["device"]


async def test_a_second_client_of_the_same_identity_kicks_the_first(device, monkeypatch):
    async with sdk(device, monkeypatch, connection_retry=False) as first:
        assert first.connected
        async with sdk(device, monkeypatch, connection_retry=False) as second:
            await until(device, lambda: device.hub.counters["kicked"])
            async with asyncio.timeout(SECONDS):
                while first.connected:
                    await second.send_message("the one that stays")
    assert device.hub.counters["connects"] == 2


async def test_a_client_with_a_wrong_key_is_refused(device, monkeypatch):
    monkeypatch.setitem(device.hub.identities.keys, "uplink", b"another key")
    with pytest.raises(Exception, match=r"(?i)credential|unauthorized"):
        async with sdk(device, monkeypatch):
            pass
    assert device.hub.counters == {"refused": 1}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: {"password": token(d, key=b"another")}, id="signature"),
        pytest.param(lambda d: {"password": token(d, lifetime_s=-301)}, id="expiry"),
        pytest.param(lambda d: {"password": token(d, host="other.azure-devices.net")}, id="hub of the token"),
        pytest.param(lambda d: {"password": token(d, "collector")}, id="module of the token"),
        pytest.param(lambda d: {"password": "secret"}, id="no token"),
        pytest.param(lambda d: {"password": token(d).rpartition("=")[0] + "=" + "9" * 5000}, id="endless expiry"),
        pytest.param(lambda d: {"client_id": f"{CAR}/collector"}, id="another client id"),
        pytest.param(lambda d: {"client_id": "other/uplink"}, id="another device"),
        pytest.param(lambda d: {"username": f"{HUB_NAME}/{CAR}/uplink"}, id="no api version"),
        pytest.param(lambda d: {"username": f"{HUB_NAME}/{CAR}/?api-version=1"}, id="a device, not a module"),
        pytest.param(lambda d: {"username": f"{HUB_NAME}/{CAR}/collector/?api-version=1"}, id="user of another module"),
        pytest.param(
            lambda d: {"module": "unknown", "password": token(d)},
            id="no such module",
        ),
    ],
)
async def test_a_connect_with_a_wrong_one_of_these_gets_code_5_and_is_closed(device, change):
    async with raw(device, **change(device)) as (client, connack):
        assert connack == b"\0\5"
        assert await client.is_closed()
    assert device.hub.counters == {"refused": 1}


@pytest.mark.parametrize("host", [HUB_NAME, HUB_NAME.upper(), "the gateway"])
async def test_a_token_for_the_hub_or_the_gateway_is_good_also_a_little_after_its_time(device, host):
    host = device.address if host == "the gateway" else host
    async with raw(device, password=token(device, host=host, lifetime_s=-200)) as (_, connack):
        assert connack == b"\0\0"


async def test_another_protocol_level_gets_code_1(device):
    async with raw(device, level=5) as (_, connack):
        assert connack == b"\0\1"


async def test_a_connection_ends_some_time_after_its_token(device, monkeypatch):
    monkeypatch.setattr(broker, "TOKEN_CHECK_SECONDS", 0.01)
    await device.hub.stop()
    await device.hub.start(*(device._state / "certificates" / f"{device.address}.{kind}" for kind in ("pem", "key")))
    async with raw(device) as (client, _):
        monkeypatch.setattr(sas, "CLOCK_SKEW_SECONDS", -120)
        assert await client.is_closed()
    assert device.hub.counters["expired"] == 1


async def test_a_client_that_is_silent_for_longer_than_it_said_is_cut_off(device):
    async with raw(device, keepalive_s=1) as (client, _):
        started = time.monotonic()
        assert await client.is_closed()
    assert 1.4 < time.monotonic() - started < 5


async def test_a_clean_session_forgets_the_subscriptions(device):
    async with raw(device) as (client, connack):
        assert connack == b"\0\0"
        assert await client.subscribe(TWIN_PATCHES, "anything/#") == bytes([1, mqtt.NOT_GRANTED])
    async with raw(device) as (client, connack):
        assert connack == b"\1\0"
        await client.send(mqtt.UNSUBSCRIBE, 2, b"\0\1" + field(TWIN_PATCHES))
        await client.next(mqtt.UNSUBACK)
    async with raw(device) as (client, connack):
        assert connack == b"\0\0"
        await client.subscribe(TWIN_PATCHES)
    async with raw(device, clean=True) as (_, connack):
        assert connack == b"\0\0"


async def test_garbage_costs_only_its_own_connection(device):
    async with raw(device) as (client, _):
        context = ssl.create_default_context(cafile=device._state / "certificates" / "ca.pem")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\xff", os.urandom(64), b""):
            reader, writer = await asyncio.open_connection(device.address, PORT, ssl=context)
            writer.write(garbage)
            writer.write_eof() if writer.can_write_eof() else writer.close()
            await asyncio.wait_for(reader.read(), SECONDS)
            writer.close()
        await client.publish(EVENTS, b"still here")
        await client.acknowledged()


async def test_who_waits_for_a_change_can_be_stopped_at_the_very_moment_it_comes(device):
    waiting = asyncio.create_task(device.hub.changed(SECONDS))
    await asyncio.sleep(0)
    device.hub.tell()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

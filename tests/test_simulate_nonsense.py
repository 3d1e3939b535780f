"""The service API answers whatever it is asked, the hub takes or refuses what comes: never an exception, nothing that
the next start cannot read.
"""

import asyncio
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from simulator import mqtt
from simulator.device import EdgeDevice
from simulator.http import Request
from tests.hub_client import CAR, EVENTS, MANIFEST, REPORTED, SECONDS, device, raw

__all__ = ["device"]
PATHS = [
    ("devices",),
    ("devices", "query"),
    ("devices", "truck"),
    ("devices", CAR),
    ("devices", "truck", "modules", "m"),
    ("devices", "truck", "applyConfigurationContent"),
    ("devices", CAR, "applyConfigurationContent"),
    ("twins", "truck"),
    ("twins", CAR),
    ("twins", CAR, "modules", "uplink"),
    ("twins", CAR, "modules", "uplink", "methods"),
    ("configurations",),
    ("configurations", "c"),
    ("configurations", "testQueries"),
    ("statistics", "service"),
    ("nothing", "\ud800", ""),
]
WORDS = """properties desired tags authentication type symmetricKey primaryKey x509Thumbprint primaryThumbprint status
capabilities methodName payload responseTimeoutInSeconds query modulesContent content targetCondition priority
$edgeAgent $edgeHub properties.desired properties.desired.routes.x modules uplink routes settings image createOptions
env"""
NAMES = WORDS.split()
VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1.5,
        1 << 60,
        1e308,
        "",
        "*",
        "\ud800",
        "$a",
        "a.b",
        "x" * 5000,
        [],
        [None],
        {},
        {"a": {"b": None}},
    ),
    *(
        "SELECT * FROM devices",
        "SELECT * FROM devices WHERE tags.x = 'y'",
        "tags.a = 'b'",
        "((((",
        "deviceId = 'x' AND",
    ),
]


def nonsense(draw: random.Random, depth: int = 0) -> Any:
    if depth > 4 or draw.random() < 0.4:
        return draw.choice(VALUES)
    if draw.random() < 0.2:
        return [nonsense(draw, depth + 1) for _ in range(draw.randint(0, 2))]
    return {draw.choice(NAMES): nonsense(draw, depth + 1) for _ in range(draw.randint(1, 4))}


def body(draw: random.Random) -> bytes:
    """Nonsense, or a deployment with some in one place."""
    if draw.random() < 0.1:
        return draw.choice([b"", b"{", b"\xff", b"[" * 5000, b'{"a": NaN}', b'{"a": 1e999}'])
    if draw.random() < 0.7:
        return json.dumps(nonsense(draw)).encode()
    document = json.loads(json.dumps(MANIFEST))
    place = document
    while isinstance(place, dict) and place:
        name = draw.choice(list(place))
        if draw.random() < 0.4:
            place[name] = nonsense(draw)
            break
        place = place[name]
    return json.dumps(document if draw.random() < 0.5 else {"content": document, "targetCondition": "*"}).encode()


@pytest.mark.parametrize("seed", range(3))
async def test_the_service_api_answers_whatever_it_is_asked(tmp_path: Path, seed: int) -> None:
    draw, statuses = random.Random(seed), set()
    for _ in range(2):
        async with EdgeDevice(MANIFEST, tmp_path, modules_root=tmp_path) as device, asyncio.timeout(3 * SECONDS):
            for _ in range(300):
                headers = {"if-match": draw.choice(['"*"', '"1"', "", "ü"])} if draw.random() < 0.5 else {}
                method = draw.choice(["GET", "PUT", "POST", "PATCH", "DELETE"])
                request = Request(
                    method, draw.choice(PATHS), {"top": draw.choice(["", "5", "-1"])}, headers, body(draw)
                )
                answer = await device.service.answer(request)
                json.dumps(answer.document)
                statuses.add(answer.status)
    assert {200, 400, 404} <= statuses <= {200, 204, 400, 404, 409, 412}


TOPICS = [
    *[EVENTS] * 10,
    *[REPORTED + "1"] * 5,
    f"devices/{CAR}/messages/events/",
    "$iothub/twin/GET/?$rid=",
    REPORTED,
    "$iothub/twin/",
    "$iothub/methods/res/200/?$rid=",
    "$iothub/methods/res/",
    "$iothub/",
    "",
]
BAGS = [
    *["$.ct=application%2Fjson&$.ce=utf-8"] * 6,
    "$.on=alarms",
    "a=1",
    "level=4",
    "?",
    "%ff%00",
    "&&=&",
    "$.ct",
    "/",
    "é",
]
BODIES = [
    b'{"n": %d}' % 10**400,
    b'{"n": 1e999}',
    b'{"n": {"a": [1e999]}}',
    b"[" * 5000,
    b"\xff",
    b"null",
    b'"\\ud800"',
    b'{"a b": 1}',
]
CONDITIONS = [
    "$body.n > 3 AND floor($body.n) <> 1",
    "as_number(level) * 1e300 * 1e300 > 1 OR substring($body.n.a, 1, 1e9) = 'x'",
    "twin_change_includes(properties.reported.n)",
    "is_defined($body.n.a[0]) AND {$contentType} = 'x'",
]


@pytest.mark.parametrize("seed", range(3))
async def test_the_hub_outlives_whatever_a_module_sends(device, seed: int) -> None:
    draw = random.Random(seed)
    sink = 'BrokeredEndpoint("/modules/uplink/inputs/in")'
    routes = {f"r{number}": f"FROM /* WHERE {text} INTO {sink}" for number, text in enumerate(CONDITIONS)}
    device.hub.patch_desired("$edgeHub", {"routes": routes})
    for _ in range(60):
        with suppress(ConnectionError, EOFError):  # the hub may have closed it
            await send_nonsense(device, draw)
    async with raw(device) as (client, _):
        await client.publish(EVENTS, b"still here")
        await client.acknowledged()
    # The fixture sees to it that nothing has failed unheard.


async def send_nonsense(device: EdgeDevice, draw: random.Random) -> None:
    async with raw(device) as (client, connack):
        assert connack[1] == 0
        for _ in range(draw.randint(1, 5)):
            bag = "&".join(draw.choices(BAGS, k=draw.randint(0, 3)))
            text = json.dumps(nonsense(draw)).encode() if draw.random() < 0.4 else draw.choice(BODIES)
            flags = draw.choice([0, 2, 2, 2, 3, 10, 11])
            await client.publish(draw.choice(TOPICS) + bag, text, flags=flags, packet_id=draw.randint(1, 3))
        await client.send(mqtt.PINGREQ, 0, b"")
        while (await client.any()).kind != mqtt.PINGRESP:
            pass
        if draw.random() < 0.3:
            await client.send(draw.randint(0, 15), draw.randint(0, 15), draw.randbytes(draw.randint(0, 20)))

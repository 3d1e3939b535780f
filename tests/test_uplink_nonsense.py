"""A hub that answers nonsense: the uplink goes on, with its last settings, and loses nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from edge.twin import Twin
from edge.uplink_settings import UplinkSettings
from simulator import mqtt
from simulator.connection import Connection
from tests.test_iothub import edge  # noqa: F401 (a fixture)
from tests.test_uplink_defects import Line, delivering, impatient, line  # noqa: F401 (fixtures)

TWINS = [
    [],
    "text",
    None,
    7,
    {},
    {"desired": 5, "reported": []},
    {"desired": ["x"], "reported": "y"},
    {"desired": {"latency_s": {"deep": [1]}, "confirmed": 3, "$version": "one"}, "reported": {"settings": 4}},
    {"desired": {"$version": []}, "reported": {"settings": {"refused": [1]}}},
]


@pytest.mark.parametrize("document", TWINS, ids=repr)
async def test_a_twin_that_is_none_leaves_the_settings_as_they_are_and_everything_is_delivered(
    line: Line,  # noqa: F811
    tmp_path,
    document: Any,
):
    twin = Twin(UplinkSettings, tmp_path / "settings.json")
    line.edge.hub.patch_desired("uplink", {"latency_s": 7})
    line.cloud.on_twin = twin.update
    given: list[str] = []

    def nonsense(module: str) -> Any:
        given.append(module)
        return document

    async with delivering(line):
        good, line.edge.hub._twin_document = line.edge.hub._twin_document, nonsense
        line.edge.drop()
        await line.edge.until(lambda: len(given) >= 2 or (given and line.cloud.connected))
        line.store()
        if document is None:  # to the SDK that is no answer: the next connection may have more luck
            line.edge.hub._twin_document = good
    assert twin.settings == UplinkSettings(latency_s=7) or document in (None, TWINS[-2], TWINS[-1])
    assert twin.settings.confirmed == {}


def garbage(connection: Connection) -> None:
    connection._writer.write(b"\xff" * 5000)


def half_a_packet(connection: Connection) -> None:
    connection._writer.write(b"\x30\xff\xff\xff\x7f half")
    connection.close()


def acknowledgement_of_nothing(connection: Connection) -> None:
    for number in (1, 999, 65535):
        connection.send(mqtt.puback(number))


def unknown_topics(connection: Connection) -> None:
    for topic in (b"$iothub/twin/res/200/?$rid=nobody", b"$iothub/methods/POST//?", b"no/such/topic", b"\xff\xfe"):
        connection._writer.write(mqtt.encode(mqtt.PUBLISH, 0, len(topic).to_bytes(2, "big") + topic + b"\x00{"))


def bad_patch(connection: Connection) -> None:
    topic = b"$iothub/twin/PATCH/properties/desired/?$version=x"
    connection._writer.write(mqtt.encode(mqtt.PUBLISH, 0, len(topic).to_bytes(2, "big") + topic + b"\xff{not json"))


@pytest.mark.parametrize("say", [garbage, half_a_packet, acknowledgement_of_nothing, unknown_topics, bad_patch])
async def test_packets_that_make_no_sense_cost_a_connection_at_most(
    line: Line,  # noqa: F811
    say: Callable[[Connection], None],
):
    async with delivering(line):
        [connection] = line.edge.hub._connections.values()
        say(connection)
        line.store()

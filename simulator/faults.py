"""A hub that misbehaves on demand: what real hubs, networks and brokers have been seen to do, as switches.

Switches are fields of Faults and can be thrown at any time; what was done is counted in the hub's counters as
`fault: <name>`, so that a test can tell that it happened.
"""

from typing import Any

import msgspec

from simulator import mqtt
from simulator.connection import Connection
from simulator.hub import Hub


class Faults(msgspec.Struct):
    """Numbers count down as the fault is done; -1 is for ever.

    silent: a PUBLISH to a topic that starts so gets no answer and no PUBACK; silence_count: how many of them.
    refuse: CONNECTs to be refused with refuse_code. no_connack, no_suback: how many are not answered. drop_after: the
    connection is cut when so many packets have come, once; drop_before_ack: at so many messages, before the PUBACK.
    forget_sessions: a CONNECT finds no session. plain_twin: twins have no $version.
    """

    silent: str | None = None
    silence_count: int = -1
    refuse: int = 0
    refuse_code: int = mqtt.NOT_AUTHORISED
    no_connack: int = 0
    no_suback: int = 0
    drop_after: int = -1
    drop_before_ack: int = 0
    forget_sessions: bool = False
    plain_twin: bool = False


class FaultyHub(Hub):
    """Throw its switches: hub.faults."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.faults = Faults()

    async def _accept(self, connection: Connection, packet: mqtt.Packet) -> int:
        module = mqtt.connect_of(packet).client_id.partition("/")[2]
        if self._is_due("refuse"):
            connection.send(mqtt.connack(self.faults.refuse_code))
            return 0
        if self._is_due("no_connack"):
            return 3600  # the line stays open, and nothing ever comes
        if self.faults.forget_sessions and module in self.subscriptions:
            self._count("forget_sessions")
            self.subscriptions[module].clear()
        return await super()._accept(connection, packet)

    async def _handle(self, connection: Connection, module: str, packet: mqtt.Packet) -> None:
        faults = self.faults
        if faults.drop_after >= 0:
            faults.drop_after -= 1
            if faults.drop_after < 0:
                self._count("drop_after")
                connection.close()
                return
        if packet.kind == mqtt.SUBSCRIBE and self._is_due("no_suback"):
            return
        if packet.kind == mqtt.PUBLISH:
            message = mqtt.publish_of(packet)
            if faults.silent and message.topic.startswith(faults.silent) and self._is_due("silence_count"):
                return
            if "/messages/events/" in message.topic and self._is_due("drop_before_ack"):
                self._take(connection, module, message, packet.wire_bytes)
                connection.close()
                self.tell()
                return
            if faults.plain_twin and message.topic.startswith("$iothub/twin/GET/"):
                self._count("plain_twin")
        await super()._handle(connection, module, packet)

    def _twin_document(self, module: str) -> dict[str, Any]:
        document = super()._twin_document(module)
        if self.faults.plain_twin:
            for section in document.values():
                section.pop("$version", None)
        return document

    def _is_due(self, name: str) -> bool:
        left = getattr(self.faults, name)
        if not left:
            return False
        setattr(self.faults, name, left - 1 if left > 0 else left)
        self._count(name)
        return True

    def _count(self, name: str) -> None:
        self.counters[f"fault: {name}"] += 1
        self.tell()

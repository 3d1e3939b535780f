"""A device and a hub that misbehave on demand: what real hubs, networks and brokers have been seen to do, as switches.

    bordnetz fault puback_delay_s=2  ─┐
    --faults schedule.json            ├─► Switchboard.throw ──► FaultyHub.faults, workload sockets, certificate, clock
    Switchboard(device).throw(…)     ─┘                    └──► faults.jsonl of the state folder

Switches can be thrown at any time. What was done is counted in the hub's counters as `fault: <name>` and written to
faults.jsonl, so that a test can tell that it happened.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edge.errors import InputError
from simulator import mqtt
from simulator.connection import Connection
from simulator.hub import Hub

RECORDED_BYTES = 16 << 20  # of faults.jsonl; what comes behind is only counted
HANG_SECONDS = 3600

Count = Annotated[int, msgspec.Meta(ge=-1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """Numbers count down as the fault is done; -1 is for ever. The default of each is that all is well.

    silent: a PUBLISH to a topic that starts so gets no answer and no PUBACK; silence_count: how many of them.
    no_twin_answer: twin requests that get their PUBACK alone.
    refuse: CONNECTs to be refused with refuse_code. no_connack, no_suback: how many are not answered. drop_after: the
    connection is cut when so many packets have come, once; drop_before_ack: at so many messages, before the PUBACK.
    puback_delay_s: PUBACKs come so late. throttle_per_s: no more PUBACKs a second than that, later ones wait.
    disconnect_every_s: all clients are cut off again and again. forget_sessions: a CONNECT finds no session.
    plain_twin: twins have no $version. workload_down: the workload sockets are closed. certificate_expired: of the
    hub, since yesterday; who is connected is cut off. upstream_cut: no way from the device to the cloud. time_rate:
    the cloud's clock runs so many times as fast: tokens, times to live, edgeAgent's waiting.
    """

    silent: str | None = None
    silence_count: Count = -1
    refuse: Count = 0
    refuse_code: Annotated[int, msgspec.Meta(ge=1, le=255)] = mqtt.NOT_AUTHORISED
    no_connack: Count = 0
    no_suback: Count = 0
    no_twin_answer: Count = 0
    drop_after: Count = -1
    drop_before_ack: Count = 0
    puback_delay_s: Seconds = 0
    throttle_per_s: Annotated[float, msgspec.Meta(ge=0)] = 0
    disconnect_every_s: Seconds = 0
    forget_sessions: bool = False
    plain_twin: bool = False
    workload_down: bool = False
    certificate_expired: bool = False
    upstream_cut: bool = False
    time_rate: Annotated[float, msgspec.Meta(ge=0.001, le=1e6)] = 1

    def on(self) -> dict[str, Any]:
        """Those that are not as by default."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value != getattr(ALL_WELL, name)}


ALL_WELL = Faults()


def changed(faults: Faults, changes: Mapping[str, Any], place: str) -> Faults:
    """Those with some switches thrown. Raises InputError, which names the switch, and the closest right name."""
    known = msgspec.structs.asdict(faults)
    for name in changes:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise InputError(place, f"there is no fault {name}", f"did you mean {near[0]}?" if near else _names())
    try:
        return msgspec.convert({**known, **changes}, Faults)
    except msgspec.ValidationError as error:
        raise InputError(place, str(error), _names()) from error


def _names() -> str:
    return f"known are {', '.join(Faults.__struct_fields__)}"


class FaultyHub(Hub):
    """Throw its switches: hub.faults."""

    def __init__(self, name: str, device: str, address: str, folder: Path, keys: dict[str, bytes]) -> None:
        super().__init__(name, device, address, folder, keys)
        self.faults = Faults()
        self._record = folder / "faults.jsonl"
        self._next_puback = 0.0

    async def _accept(self, connection: Connection, packet: mqtt.Packet) -> int:
        device, _, name = mqtt.connect_of(packet).client_id.partition("/")
        module = self.identities.of(device, name)
        if self._is_due("refuse", module):
            connection.send(mqtt.connack(self.faults.refuse_code))
            return 0
        if self._is_due("no_connack", module):
            return HANG_SECONDS  # the line stays open, and nothing ever comes
        if self.faults.forget_sessions and module in self.subscriptions:
            self.note("forget_sessions", module)
            self.subscriptions[module].clear()
        return await super()._accept(connection, packet)

    async def _handle(self, connection: Connection, module: str, packet: mqtt.Packet) -> None:
        faults = self.faults
        if faults.drop_after >= 0:
            faults.drop_after -= 1
            if faults.drop_after < 0:
                self.note("drop_after", module)
                connection.close()
                return
        if packet.kind == mqtt.SUBSCRIBE and self._is_due("no_suback", module):
            return
        if packet.kind == mqtt.PUBLISH:
            message = mqtt.publish_of(packet)
            if faults.silent and message.topic.startswith(faults.silent) and self._is_due("silence_count", module):
                return
            if "/messages/events/" in message.topic and self._is_due("drop_before_ack", module):
                self._take(connection, module, message, packet.wire_bytes)
                connection.close()
                self.tell()
                return
            if faults.plain_twin and message.topic.startswith("$iothub/twin/GET/"):
                self.note("plain_twin", module)
        await super()._handle(connection, module, packet)

    def _acknowledge(self, connection: Connection, packet_id: int) -> None:
        faults, now = self.faults, time.monotonic()
        due = now + faults.puback_delay_s
        if faults.throttle_per_s:
            self._next_puback = max(now, self._next_puback) + 1 / faults.throttle_per_s
            if self._next_puback > due:
                due = self._next_puback
                self.note("throttle_per_s", connection.module)
        if faults.puback_delay_s:
            self.note("puback_delay_s", connection.module)
        if due == now:
            super()._acknowledge(connection, packet_id)
        else:
            self._tasks.start(self._acknowledge_late(due - now, connection, packet_id), "hub: late PUBACK")

    async def _acknowledge_late(self, seconds: float, connection: Connection, packet_id: int) -> None:
        await asyncio.sleep(seconds)
        if not connection.is_closing:
            super()._acknowledge(connection, packet_id)

    def _twin_document(self, module: str) -> dict[str, Any]:
        document = super()._twin_document(module)
        if self.faults.plain_twin:
            for section in document.values():
                section.pop("$version", None)
        return document

    def _answer_twin(self, connection: Connection, status: int, *answer: Any) -> None:
        if not self._is_due("no_twin_answer", connection.module):
            super()._answer_twin(connection, status, *answer)

    def _is_due(self, name: str, module: str) -> bool:
        left = getattr(self.faults, name)
        if not left:
            return False
        setattr(self.faults, name, left - 1 if left > 0 else left)
        self.note(name, module)
        return True

    def note(self, name: str, module: str) -> None:
        """A fault has been done to a module."""
        self.counters[f"fault: {name}"] += 1
        self.write({"did": name, "to": module})
        self.tell()

    def write(self, event: Mapping[str, Any]) -> None:
        """To faults.jsonl, with the time."""
        with self._record.open("a") as file:
            if file.tell() < RECORDED_BYTES:
                file.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")

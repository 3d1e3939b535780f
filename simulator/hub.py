"""IoT Hub behind an edgeHub, as one device's modules see it: MQTT 3.1.1 over TLS on port 8883.

    CONNECT ──► identity and SAS token ──► session ──► PUBLISH telemetry    stored, then PUBACK
                                                       PUBLISH twin GET, reported PATCH, method answers
                                                 ◄──── twin answers, desired patches, method calls

Answers are edgeHub's: QoS 1, no `$version` after a reported patch, nothing replayed after an outage. Twins and
subscriptions outlive the hub: they lie in hub.json of the state folder. Every packet of a module is answered in
Hub._handle: a hub with faults overrides that.
"""

import asyncio
import json
import logging
import ssl
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from edge.errors import InputError
from simulator import mqtt
from simulator.connection import TWIN_ANSWERS, Connection, request_id
from simulator.sas import BadToken, check_token, has_expired
from simulator.tasks import Tasks
from simulator.telemetry import Bag, MessageStore, bag_bytes, parse_bag
from simulator.twin import Rejected, Twin, parse

log = logging.getLogger(__name__)

PORT = 8883
CONNECT_SECONDS = 60
KEEPALIVE_MOST_SECONDS = 600
TOKEN_CHECK_SECONDS = 300.0
MOST_CLIENTS = 100
MESSAGE_BYTES = 262_144
METERED_BYTES = 4096
METHOD_NAME_CHARACTERS, METHOD_BYTES = 100, 128 * 1024

TWIN_PATCHES = "$iothub/twin/PATCH/properties/desired/#"
METHOD_CALLS = "$iothub/methods/POST/#"


class NoAnswer(Exception):
    """The module is not there (404) or did not answer in time (504)."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


class Hub:
    """keys: each module's identity key, which the workload API signs with.

    counters: connects, refused (CONNACK other than 0), kicked (by the same identity), expired (tokens), malformed;
    messages, body_bytes, wire_bytes (MQTT packets, before TLS), units (of 4 KB, as billed), duplicates (DUP set),
    oversize. Raises InputError: hub.json in folder cannot be read.
    """

    def __init__(self, name: str, device: str, address: str, folder: Path, keys: dict[str, bytes]) -> None:
        self.name = name
        self.device = device
        self.address = address
        self.counters: Counter[str] = Counter()
        self.store = MessageStore(folder / "messages", name)
        self._keys = keys
        self._path = folder / "hub.json"
        self._connections: dict[str, Connection] = {}
        self._calls: dict[str, asyncio.Future[tuple[int, Any]]] = {}
        self._server: asyncio.Server | None = None
        self._tasks = Tasks()
        self._change = asyncio.Event()
        state = _read_state(self._path)
        self._twins = {module: Twin(state.get("twins", {}).get(module)) for module in keys}
        self._deployed: dict[str, Any] = state.get("deployed", {})
        self.subscriptions: dict[str, dict[str, int]] = {
            module: dict(state.get("subscriptions", {}).get(module, {})) for module in keys
        }

    @property
    def messages_dir(self) -> Path:
        return self.store.folder

    async def start(self, certificate: Path, key: Path) -> None:
        """Raises OSError where the address cannot be bound."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
        self._server = await asyncio.start_server(self._connected, self.address, PORT, ssl=context)
        self._tasks.start(self._check_tokens(), "hub: token check")

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections.values()):
            connection.close()
        await self._tasks.end()

    # What the cloud side does

    def twin(self, module: str) -> Twin:
        """To look at; what changes here alone is not sent to the module: use patch_desired."""
        return self._twins[module]

    def set_desired(self, module: str, desired: dict[str, Any]) -> None:
        """Replace the desired section, as a deployment does. The same deployment again changes nothing.

        Raises Rejected.
        """
        if self._deployed.get(module) == desired:
            return
        fresh = Twin()
        fresh.patch_desired(desired)
        twin = self._twins[module]
        if twin.desired != fresh.desired:
            twin.desired = fresh.desired
            twin.desired_version += 1
            self._notify_desired(module, desired)
        self._deployed[module] = desired
        self._keep()

    def patch_desired(self, module: str, patch: dict[str, Any]) -> None:
        """Raises Rejected."""
        self._twins[module].patch_desired(patch)
        self._keep()
        self._notify_desired(module, patch)

    async def call(self, module: str, method: str, payload: Any = None, timeout_s: float = 30.0) -> tuple[int, Any]:
        """A direct method: status and payload of its answer. Raises NoAnswer; ValueError: name or payload too long."""
        body = json.dumps(payload).encode()
        if len(method) > METHOD_NAME_CHARACTERS or len(body) > METHOD_BYTES:
            raise ValueError(f"a method of {len(method)} characters with {len(body)} bytes is over the limits")
        connection = self._connections.get(module)
        rid = uuid.uuid4().hex
        answer = self._calls[rid] = asyncio.get_running_loop().create_future()
        try:
            topic = f"$iothub/methods/POST/{method}/?$rid={rid}"
            if connection is None or not connection.publish(METHOD_CALLS, topic, body):
                raise NoAnswer(404, f"{module} is not connected, or takes no methods")
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError as error:
            raise NoAnswer(504, f"{module} did not answer {method} in {timeout_s} s") from error
        finally:
            del self._calls[rid]

    async def changed(self, timeout_s: float) -> None:
        """Return once anything changes: a message, a twin, a connection, a module's state. Raises TimeoutError."""
        await asyncio.wait_for(self._change.wait(), timeout_s)

    def tell(self) -> None:
        """Wake who waits for a change."""
        self._change.set()
        self._change = asyncio.Event()

    # What modules do

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) > MOST_CLIENTS:
            writer.close()
        else:
            self._tasks.start(self._serve(reader, Connection(writer), writer), "hub: connection")

    async def _serve(self, reader: asyncio.StreamReader, connection: Connection, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                keepalive_s = await self._accept(connection, await mqtt.read_packet(reader))
            while keepalive_s:
                async with asyncio.timeout(1.5 * keepalive_s):
                    packet = await mqtt.read_packet(reader)
                if packet.kind == mqtt.DISCONNECT or connection.is_closing:
                    break
                await self._handle(connection, connection.module, packet)
                async with asyncio.timeout(1.5 * keepalive_s):
                    await writer.drain()
        except mqtt.Malformed as error:
            self.counters["malformed"] += 1
            log.warning("%s: connection closed: %s", connection.module or "?", error)
        except (OSError, EOFError, TimeoutError):  # also of TLS
            pass
        finally:
            if self._connections.get(connection.module) is connection:
                del self._connections[connection.module]
            connection.close()
            self.tell()

    async def _accept(self, connection: Connection, packet: mqtt.Packet) -> int:
        """Answer a CONNECT; return the seconds that the client may be silent, 0 where it was refused."""
        connect = mqtt.connect_of(packet)
        module = connect.client_id.partition("/")[2]
        code, reason, expiry = self._judge(connect, module)
        if code != mqtt.ACCEPTED:
            self.counters["refused"] += 1
            log.warning("CONNECT of %r refused with %d: %s", connect.client_id, code, reason)
            connection.send(mqtt.connack(code))
            return 0
        self.counters["connects"] += 1
        older = self._connections.get(module)
        if older is not None:
            self.counters["kicked"] += 1
            older.close()
        if connect.clean:
            self.subscriptions[module].clear()
            self._keep()
        connection.module, connection.token_expiry = module, expiry
        connection.subscriptions = self.subscriptions[module]
        self._connections[module] = connection
        connection.send(mqtt.connack(mqtt.ACCEPTED, session_present=bool(self.subscriptions[module])))
        self.tell()
        return min(connect.keepalive_s or KEEPALIVE_MOST_SECONDS, KEEPALIVE_MOST_SECONDS)

    def _judge(self, connect: mqtt.Connect, module: str) -> tuple[int, str, int]:
        """CONNACK code, its reason, and when the token expires."""
        if connect.level != 4:
            return mqtt.BAD_PROTOCOL, f"protocol level {connect.level}", 0
        identity, _, query = connect.username.partition("?")
        parts = identity.strip("/").split("/")
        if len(parts) != 3 or "api-version" not in parse_qs(query):
            return mqtt.NOT_AUTHORISED, "the user name is not hub/device/module/?api-version=…", 0
        if parts[1:] != [self.device, module] or connect.client_id != f"{self.device}/{module}":
            return mqtt.NOT_AUTHORISED, "client id and user name do not name one module of this device", 0
        if module not in self._keys:
            return mqtt.NOT_AUTHORISED, "there is no such module", 0
        path = f"devices/{self.device}/modules/{module}"
        try:
            expiry = check_token(connect.password, (self.name, self.address), path, self._keys[module])
        except BadToken as error:
            return mqtt.NOT_AUTHORISED, str(error), 0
        return mqtt.ACCEPTED, "", expiry

    async def _handle(self, connection: Connection, module: str, packet: mqtt.Packet) -> None:
        match packet.kind:
            case mqtt.PUBLISH:
                message = mqtt.publish_of(packet)
                self.counters["duplicates"] += message.is_duplicate
                self._take(connection, module, message, packet.wire_bytes)
                if message.qos:
                    connection.send(mqtt.puback(message.packet_id))
                self.tell()
            case mqtt.SUBSCRIBE:
                wanted = mqtt.subscribe_of(packet)
                connection.send(mqtt.suback(wanted.packet_id, self._subscribe(module, wanted.filters)))
            case mqtt.UNSUBSCRIBE:
                packet_id, filters = mqtt.unsubscribe_of(packet)
                for name in filters:
                    self.subscriptions[module].pop(name, None)
                self._keep()
                connection.send(mqtt.unsuback(packet_id))
            case mqtt.PINGREQ:
                connection.send(mqtt.pingresp())
            case mqtt.PUBACK:
                mqtt.packet_id_of(packet)
            case _:
                raise mqtt.Malformed(f"a packet of kind {packet.kind}")

    def _subscribe(self, module: str, filters: list[tuple[str, int]]) -> list[int]:
        known = (TWIN_ANSWERS, TWIN_PATCHES, METHOD_CALLS, f"devices/{self.device}/modules/{module}/inputs/#")
        self.subscriptions[module] |= {name: qos for name, qos in filters if name in known}
        self._keep()
        return [qos if name in known else mqtt.NOT_GRANTED for name, qos in filters]

    def _take(self, connection: Connection, module: str, message: mqtt.Publish, wire_bytes: int) -> None:
        events = f"devices/{self.device}/modules/{module}/messages/events/"
        topic = message.topic
        if topic.startswith(events):
            self._take_telemetry(module, parse_bag(topic[len(events) :]), message, wire_bytes)
        elif topic.startswith("$iothub/twin/GET/"):
            connection.answer(200, request_id(topic), self._twin_document(module))
        elif topic.startswith("$iothub/twin/PATCH/properties/reported/"):
            self._take_reported(connection, module, request_id(topic), message.payload)
        elif topic.startswith("$iothub/methods/res/"):
            self._take_method_answer(topic, message.payload)
        else:
            raise mqtt.Malformed(f"a PUBLISH to {topic!r}, which is no topic of {module}")

    def _twin_document(self, module: str) -> dict[str, Any]:
        return self._twins[module].document()

    def _take_telemetry(self, module: str, bag: Bag, message: mqtt.Publish, wire_bytes: int) -> None:
        if message.is_retained:
            bag["mqtt-retain"] = "true"
        size = len(message.payload) + bag_bytes(bag)
        if size > MESSAGE_BYTES:
            # edgeHub acknowledges such a message, and drops it.
            self.counters["oversize"] += 1
            log.warning("%s: a message of %d bytes is over the limit and was dropped", module, size)
            return
        try:
            self.store.store(self.device, module, bag, message.payload)
        except OSError as error:
            log.error("%s: a message could not be stored: %s", module, error)
            raise
        self.counters["messages"] += 1
        self.counters["wire_bytes"] += wire_bytes
        self.counters["body_bytes"] += len(message.payload)
        self.counters["units"] += max(1, -(-size // METERED_BYTES))

    def _take_reported(self, connection: Connection, module: str, rid: str, payload: bytes) -> None:
        try:
            self._twins[module].patch_reported(parse(payload))
        except Rejected as error:
            log.warning("%s: reported properties refused: %s", module, error)
            connection.answer(400, rid)
            return
        self._keep()
        connection.answer(204, rid)

    def _take_method_answer(self, topic: str, payload: bytes) -> None:
        status = topic.split("/")[3]
        call = self._calls.get(request_id(topic))
        if call is not None and not call.done() and len(status) == 3 and status.isdecimal():
            with suppress(Rejected):  # an answer that is no JSON is none
                call.set_result((int(status), parse(payload) if payload else None))

    def _notify_desired(self, module: str, patch: dict[str, Any]) -> None:
        connection = self._connections.get(module)
        if connection is not None:
            version = self._twins[module].desired_version
            body = json.dumps({**patch, "$version": version}).encode()
            connection.publish(TWIN_PATCHES, f"$iothub/twin/PATCH/properties/desired/?$version={version}", body)

    async def _check_tokens(self) -> None:
        """edgeHub looks every five minutes whose token has expired, and cuts the connection."""
        while True:
            await asyncio.sleep(TOKEN_CHECK_SECONDS)
            for connection in list(self._connections.values()):
                if has_expired(connection.token_expiry):
                    self.counters["expired"] += 1
                    connection.close()

    def _keep(self) -> None:
        state = {
            "twins": {module: twin.to_dict() for module, twin in self._twins.items()},
            "deployed": self._deployed,
            "subscriptions": self.subscriptions,
        }
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(state))
        draft.replace(self._path)
        self.tell()


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(path, f"is no state of a hub ({error})", "delete it: twins and sessions start anew") from error
    if not isinstance(state, dict):
        raise InputError(path, "is no state of a hub", "delete it: twins and sessions start anew")
    return state

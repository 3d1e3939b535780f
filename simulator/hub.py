"""IoT Hub behind an edgeHub, as one device's modules see it: MQTT 3.1.1 over TLS on port 8883.

    CONNECT ──► identity and SAS token ──► session ──► PUBLISH telemetry    stored, then PUBACK
                                                       PUBLISH twin GET, reported PATCH, method answers
                                                 ◄──── twin answers, desired patches, method calls

Answers are edgeHub's: QoS 1, no `$version` after a reported patch, nothing replayed after an outage. Twins and
subscriptions outlive the hub: they lie in hub.json of the state folder. Every packet of a module is answered in
Hub._handle: a hub with faults overrides that.
"""

import asyncio
import copy
import json
import logging
import ssl
import uuid
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge.errors import InputError
from simulator import mqtt
from simulator.acknowledger import Acknowledger
from simulator.clock import Clock
from simulator.connection import TWIN_ANSWERS, Connection, request_id
from simulator.identities import Identities
from simulator.router import Message, Router, forever, input_topic
from simulator.sas import has_expired
from simulator.tasks import Tasks
from simulator.telemetry import Bag, MessageStore, bag_bytes, parse_bag
from simulator.twin import Rejected, Twin, difference, parse

log = logging.getLogger(__name__)

PORT = 8883
CONNECT_SECONDS = 60
KEEPALIVE_MOST_SECONDS = 600
TOKEN_CHECK_SECONDS = 300.0
MOST_CLIENTS = 100  # of edgeHub
MOST_CONNECTIONS = 1000
ACKNOWLEDGE_SECONDS = 30.0
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
    """keys: each module's identity key, which the workload API signs with; "" is the device itself.

    on_message gets (identity, property bag, body) of each message that is stored for the cloud.

    counters: connects, refused (CONNACK other than 0), kicked (by the same identity), expired (tokens), malformed;
    messages, body_bytes, wire_bytes (MQTT packets, before TLS), units (of 4 KB, as billed), duplicates (DUP set),
    oversize. Raises InputError: hub.json in folder cannot be read.
    """

    def __init__(self, name: str, device: str, address: str, folder: Path, keys: dict[str, bytes]) -> None:
        self.name = name
        self.device = device
        self.address = address
        self.counters: Counter[str] = Counter()
        self.on_message: Callable[[str, Bag, bytes], None] | None = None
        self.store = MessageStore(folder / "messages", name)
        self.clock = Clock()
        self.identities = Identities(device, (name, address), keys, self.clock.now)
        self._keys = keys
        self._path = folder / "hub.json"
        self._connections: dict[str, Connection] = {}
        self._calls: dict[str, asyncio.Future[tuple[int, Any]]] = {}
        self._server: asyncio.Server | None = None
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tasks = Tasks()
        self._acknowledger = Acknowledger(self.store, self._tasks)
        self._cut_twins: dict[str, Twin] | None = None
        self._change = asyncio.Event()
        state = _read_state(self._path)
        self._stored = state
        self._twins: dict[str, Twin] = {}
        self._deployed: dict[str, Any] = state.get("deployed", {})
        self.subscriptions: dict[str, dict[str, int]] = {}
        for identity in keys:
            self._remember(identity)
        self.router = Router(
            folder / "queues", self.counters, self._to_cloud, self._to_input, self.tell, self.clock.now
        )
        self._configure_routes()

    @property
    def messages_dir(self) -> Path:
        return self.store.folder

    async def start(self, certificate: Path, key: Path) -> None:
        """Raises OSError where the address cannot be bound."""
        self.tls.load_cert_chain(certificate, key)
        self._server = await asyncio.start_server(self._connected, self.address, PORT, ssl=self.tls)
        self._tasks.start(self._check_tokens(), "hub: token check")
        self.router.start()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.disconnect_all()
        await self.router.stop()
        await self._tasks.end()
        self.store.close()

    # What the cloud side does

    def add_identity(
        self, identity: str, key: bytes, secondary: bytes = b"", thumbprints: Collection[str] = ()
    ) -> None:
        """Let in who has one of these keys, or the certificate of such a thumbprint (SHA-1 or SHA-256, upper case).

        Twin and subscriptions are those of its last time in this state folder.
        """
        self.identities.add(identity, key, secondary, thumbprints)
        if identity not in self._twins:
            self._remember(identity)

    def trust(self, certificate: Path) -> None:
        """Let TLS pass a client's certificate, or all that this CA has made. Whom it lets in, thumbprints say."""
        self.tls.load_verify_locations(certificate)
        self.tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self.tls.verify_mode = ssl.CERT_OPTIONAL

    def bar(self, identity: str) -> None:
        """Let it in no longer; its twin stays."""
        self.identities.bar(identity)
        self.disconnect(identity)

    def remove_identity(self, identity: str) -> None:
        """With its twin; its connection is cut."""
        self.bar(identity)
        for known in (self._twins, self._deployed, self.subscriptions, *self._stored.values()):
            known.pop(identity, None)
        self._keep()

    def disconnect(self, identity: str) -> None:
        connection = self._connections.get(identity)
        if connection is not None:
            connection.close()

    def disconnect_all(self) -> None:
        for connection in list(self._connections.values()):
            connection.close()

    def is_connected(self, identity: str) -> bool:
        return identity in self._connections

    def twin(self, module: str) -> Twin:
        """To look at; what changes here alone is not sent to the module: use patch_desired."""
        return self._twins[module]

    def set_desired(self, module: str, desired: dict[str, Any]) -> None:
        """Replace the desired section, as a deployment does. The same deployment again changes nothing.

        Raises Rejected.
        """
        if self._deployed.get(module) == desired:
            return
        self.replace_desired(module, desired)
        self._deployed[module] = desired
        self._keep()

    def replace_desired(self, module: str, desired: dict[str, Any]) -> None:
        """Raises Rejected."""
        if self._twins[module].replace_desired(desired):
            self._keep()
            self._notify_desired(module, desired)

    def patch_desired(self, module: str, patch: dict[str, Any]) -> None:
        """Raises Rejected."""
        self._twins[module].patch_desired(patch)
        self._keep()
        self._notify_desired(module, patch)

    def set_tags(self, module: str, tags: dict[str, Any], *, merge: bool) -> None:
        """Tags of a twin: for the cloud side alone. Raises Rejected."""
        self._twins[module].set_tags(tags, merge=merge)
        self._keep()

    async def call(
        self, module: str, method: str, payload: Any = None, timeout_s: float = 30.0, connect_s: float = 0.0
    ) -> tuple[int, Any]:
        """A direct method: status and payload of its answer. Raises NoAnswer; ValueError: name or payload too long.

        connect_s: how long to wait for a module that is not there, or takes no methods yet.
        """
        body = json.dumps(payload).encode()
        if len(method) > METHOD_NAME_CHARACTERS or len(body) > METHOD_BYTES:
            raise ValueError(f"a method of {len(method)} characters with {len(body)} bytes is over the limits")
        with suppress(TimeoutError):
            async with asyncio.timeout(connect_s):
                while connect_s and not (self.is_connected(module) and METHOD_CALLS in self.subscriptions[module]):
                    await self.changed(connect_s)
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

    def cut_upstream(self, is_cut: bool) -> None:
        """Cut the device off from the cloud, or connect it again.

        While it is cut, edgeHub keeps telemetry, serves the last twins and takes reported properties. Afterwards
        telemetry follows, and what has changed in each desired section comes as one patch. Raises OSError.
        """
        if is_cut == self.router.is_cut:
            return
        self.router.cut(is_cut)
        before, self._cut_twins = self._cut_twins, copy.deepcopy(self._twins) if is_cut else None
        for module, old in (before or {}).items():
            new = None if self.identities.is_direct(module) else self._twins.get(module)
            if new and (patch := difference(old.desired, new.desired)):
                self._notify_desired(module, patch)
        self.tell()

    async def changed(self, timeout_s: float) -> None:
        """Return once anything changes: a message, a twin, a connection, a module's state. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):  # wait_for loses a cancellation that comes together with the change
            await self._change.wait()

    def tell(self) -> None:
        """Wake who waits for a change."""
        self._change.set()
        self._change = asyncio.Event()

    # What modules do

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) > MOST_CONNECTIONS:
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
        device, _, name = connect.client_id.partition("/")
        module = self.identities.of(device, name)
        code, reason, expiry = self.identities.judge(connect, module, connection.thumbprints())
        others = [one for one in self._connections if one != module and not self.identities.is_direct(one)]
        if code == mqtt.ACCEPTED and len(others) >= MOST_CLIENTS and not self.identities.is_direct(module):
            code, reason = mqtt.UNAVAILABLE, f"edgeHub has {MOST_CLIENTS} clients at most"
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
        connection.most_qos = 0 if self.identities.is_direct(module) else 1
        connection.subscriptions = self.subscriptions[module]
        self._connections[module] = connection
        connection.send(mqtt.connack(mqtt.ACCEPTED, session_present=bool(self.subscriptions[module])))
        self.tell()
        return min(connect.keepalive_s or KEEPALIVE_MOST_SECONDS, KEEPALIVE_MOST_SECONDS)

    async def _handle(self, connection: Connection, module: str, packet: mqtt.Packet) -> None:
        match packet.kind:
            case mqtt.PUBLISH:
                message = mqtt.publish_of(packet)
                self.counters["duplicates"] += message.is_duplicate
                self._take(connection, module, message, packet.wire_bytes)
                if message.qos:
                    self._acknowledge(connection, message.packet_id)
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
                connection.acknowledged(mqtt.packet_id_of(packet))
            case _:
                raise mqtt.Malformed(f"a packet of kind {packet.kind}")

    def _acknowledge(self, connection: Connection, packet_id: int) -> None:
        self._acknowledger.acknowledge(connection, packet_id)

    def _subscribe(self, module: str, filters: list[tuple[str, int]]) -> list[int]:
        root = self.identities.path_of(module)
        known = (TWIN_ANSWERS, TWIN_PATCHES, METHOD_CALLS, f"{root}/inputs/#", f"{root}/messages/devicebound/#")
        self.subscriptions[module] |= {name: qos for name, qos in filters if name in known}
        self._keep()
        return [qos if name in known else mqtt.NOT_GRANTED for name, qos in filters]

    def _take(self, connection: Connection, module: str, message: mqtt.Publish, wire_bytes: int) -> None:
        events = f"{self.identities.path_of(module)}/messages/events/"
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
        document = self._twins[module].document()
        if self._cut_twins is not None and module in self._cut_twins and not self.identities.is_direct(module):
            document["desired"] = self._cut_twins[module].document()["desired"]
        return document

    def _take_telemetry(self, module: str, bag: Bag, message: mqtt.Publish, wire_bytes: int) -> None:
        if message.is_retained:
            bag["mqtt-retain"] = "true"
        size = len(message.payload) + bag_bytes(bag)
        if size > MESSAGE_BYTES:
            # edgeHub acknowledges such a message, and drops it.
            self.counters["oversize"] += 1
            log.warning("%s: a message of %d bytes is over the limit and was dropped", module, size)
            return
        sent = Message(module, *self.identities.names_of(module), bag, message.payload)
        try:
            if self.identities.is_direct(module):
                self._to_cloud(sent)
            else:
                self.router.route(sent)
        except OSError as error:
            log.error("%s: a message could not be stored: %s", module, error)
            raise
        self.counters["wire_bytes"] += wire_bytes

    def _to_cloud(self, message: Message) -> None:
        self.store.store(message.device, message.module, message.bag, message.body)
        self.counters["messages"] += 1
        self.counters["body_bytes"] += len(message.body)
        size = len(message.body) + bag_bytes(message.bag)
        self.counters["units"] += max(1, -(-size // METERED_BYTES))
        if self.on_message:
            self.on_message(message.identity, message.bag, message.body)

    async def _to_input(self, module: str, input_name: str, message: Message) -> bool:
        """Wait until the module listens, send, and wait for its acknowledgement; edgeHub does so for 30 s."""
        root = self.identities.path_of(module)
        inputs = f"{root}/inputs/#"
        await forever(lambda: self.is_connected(module) and inputs in self.subscriptions[module], self.changed)
        topic = input_topic(root, input_name, message)
        return await self._connections[module].deliver(inputs, topic, message.body, ACKNOWLEDGE_SECONDS)

    def _take_reported(self, connection: Connection, module: str, rid: str, payload: bytes) -> None:
        try:
            self._twins[module].patch_reported(parse(payload))
        except Rejected as error:
            log.warning("%s: reported properties refused: %s", module, error)
            connection.answer(400, rid)
            return
        self._keep()
        version = self._twins[module].reported_version
        connection.answer(204, rid, version=version if self.identities.is_direct(module) else None)
        self._tell_twin_change(module, "reported", payload)

    def _take_method_answer(self, topic: str, payload: bytes) -> None:
        status = topic.split("/")[3]
        call = self._calls.get(request_id(topic))
        if call is not None and not call.done() and len(status) == 3 and status.isdecimal():
            with suppress(Rejected):  # an answer that is no JSON is none
                call.set_result((int(status), parse(payload) if payload else None))

    def _tell_twin_change(self, module: str, section: str, payload: bytes) -> None:
        """Routes from /twinChangeNotifications take it; others do not."""
        body = b'{"properties":{"%s":%s}}' % (section.encode(), payload)
        bag: Bag = {"$.ct": "application/json", "$.ce": "utf-8"}
        if not self.identities.is_direct(module):
            self.router.route(Message(module, *self.identities.names_of(module), bag, body), "/twinChangeNotifications")

    def _notify_desired(self, module: str, patch: dict[str, Any]) -> None:
        if module == "$edgeHub":
            self._configure_routes()
        if self._cut_twins is not None and not self.identities.is_direct(module):
            return
        connection = self._connections.get(module)
        if connection is not None:
            version = self._twins[module].desired_version
            body = json.dumps({**patch, "$version": version}).encode()
            connection.publish(TWIN_PATCHES, f"$iothub/twin/PATCH/properties/desired/?$version={version}", body)

    async def _check_tokens(self) -> None:
        """edgeHub looks every five minutes whose token has expired, and cuts the connection."""
        while True:
            await self.clock.sleep(TOKEN_CHECK_SECONDS)
            for connection in list(self._connections.values()):
                if has_expired(connection.token_expiry, self.clock.now()):
                    self.counters["expired"] += 1
                    connection.close()

    def _configure_routes(self) -> None:
        twin = self._twins.get("$edgeHub")
        self.router.configure(twin.desired if twin else {})

    def _remember(self, identity: str) -> None:
        self._twins[identity] = Twin(self._stored.get("twins", {}).get(identity))
        self.subscriptions[identity] = dict(self._stored.get("subscriptions", {}).get(identity, {}))

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

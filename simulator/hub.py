"""IoT Hub behind an edgeHub, as one device's modules see it: MQTT 3.1.1 over TLS on port 8883.

    CONNECT ──► identity and SAS token ──► session ──► PUBLISH telemetry    stored, then PUBACK
                                                       PUBLISH twin GET, reported PATCH, method answers
                                                 ◄──── twin answers, desired patches, method calls

Answers are edgeHub's: QoS 1, no `$version` after a reported patch, nothing replayed after an outage. Twins and
subscriptions outlive the hub: they lie in hub.json of the state folder.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import ssl
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, unquote_plus

from simulator import mqtt
from simulator.telemetry import MessageStore, parse_bag
from simulator.twin import Rejected, Twin

log = logging.getLogger(__name__)

PORT = 8883
CONNECT_SECONDS = 60
CLOCK_SKEW_SECONDS = 300
MESSAGE_BYTES = 262_144
WIRE_HEAD_BYTES = 8  # of a PUBLISH: fixed header, length of the topic, packet id

TWIN_ANSWERS = "$iothub/twin/res/#"
TWIN_PATCHES = "$iothub/twin/PATCH/properties/desired/#"
METHOD_CALLS = "$iothub/methods/POST/#"


class NoAnswer(Exception):
    """The module is not there (404) or did not answer in time (504)."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


class Hub:
    """keys: each module's identity key, which the workload API signs with."""

    def __init__(self, name: str, device: str, address: str, folder: Path, keys: dict[str, bytes]) -> None:
        self.name = name
        self.device = device
        self.address = address
        self.counters: Counter[str] = Counter()
        self.store = MessageStore(folder / "messages", name)
        self._keys = keys
        self._path = folder / "hub.json"
        self._connections: dict[str, _Connection] = {}
        self._calls: dict[str, asyncio.Future[tuple[int, Any]]] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        state = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._twins = {module: Twin(state.get("twins", {}).get(module)) for module in keys}
        self.subscriptions: dict[str, list[str]] = {
            module: state.get("subscriptions", {}).get(module, []) for module in keys
        }

    @property
    def messages_dir(self) -> Path:
        return self.store.folder

    async def start(self, certificate: Path, key: Path) -> None:
        """Raises OSError where the address cannot be bound."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
        self._server = await asyncio.start_server(self._serve, self.address, PORT, ssl=context)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections.values()):
            connection.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What the cloud side does

    def twin(self, module: str) -> Twin:
        return self._twins[module]

    def set_desired(self, module: str, desired: dict[str, Any]) -> None:
        """Replace the desired section, as a deployment does; unchanged desired properties keep their version."""
        twin = self._twins[module]
        if twin.desired != desired:
            twin.desired = {}
            twin.patch_desired(desired)
            self._notify_desired(module, desired)
        self._keep()

    def patch_desired(self, module: str, patch: dict[str, Any]) -> None:
        """Raises Rejected."""
        self._twins[module].patch_desired(patch)
        self._notify_desired(module, patch)
        self._keep()

    async def call(self, module: str, method: str, payload: Any = None, timeout_s: float = 30.0) -> tuple[int, Any]:
        """A direct method. Raises NoAnswer."""
        rid = uuid.uuid4().hex
        connection = self._connections.get(module)
        if connection is None or METHOD_CALLS not in self.subscriptions[module]:
            raise NoAnswer(404, f"{module} is not connected, or takes no methods")
        self._calls[rid] = asyncio.get_running_loop().create_future()
        try:
            connection.publish(f"$iothub/methods/POST/{method}/?$rid={rid}", json.dumps(payload).encode())
            return await asyncio.wait_for(self._calls[rid], timeout_s)
        except TimeoutError as error:
            raise NoAnswer(504, f"{module} did not answer {method} in {timeout_s} s") from error
        finally:
            del self._calls[rid]

    async def changed(self, timeout_s: float) -> None:
        """Return once anything has changed: a message, a twin, a connection. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait()

    # What modules do

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        connection = _Connection(self, writer)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                module, keepalive_s = await self._accept(connection, await mqtt.read_packet(reader))
            while True:
                async with asyncio.timeout(1.5 * keepalive_s or None):
                    packet = await mqtt.read_packet(reader)
                if packet.kind == mqtt.DISCONNECT:
                    break
                await self._handle(connection, module, packet)
                await writer.drain()
        except mqtt.Malformed as error:
            self.counters["malformed"] += 1
            log.warning("%s: connection closed: %s", connection.module or "?", error)
        except (OSError, EOFError, TimeoutError, ssl.SSLError):
            pass
        finally:
            if self._connections.get(connection.module) is connection:
                del self._connections[connection.module]
            connection.close()
            await self._tell()

    async def _accept(self, connection: "_Connection", packet: mqtt.Packet) -> tuple[str, int]:
        connect = mqtt.connect_of(packet)
        module = connect.client_id.partition("/")[2]
        code, reason = self._judge(connect, module)
        if code != mqtt.ACCEPTED:
            self.counters["refused"] += 1
            connection.send(mqtt.connack(code))
            raise mqtt.Malformed(f"CONNECT of {connect.client_id!r} refused with {code}: {reason}")
        self.counters["connects"] += 1
        older = self._connections.get(module)
        if older is not None:
            self.counters["kicked"] += 1
            older.close()
        if connect.clean:
            self.subscriptions[module] = []
        connection.module = module
        self._connections[module] = connection
        connection.send(mqtt.connack(mqtt.ACCEPTED, session_present=bool(self.subscriptions[module])))
        await self._tell()
        return module, connect.keepalive_s

    def _judge(self, connect: mqtt.Connect, module: str) -> tuple[int, str]:
        if connect.level != 4:
            return mqtt.BAD_PROTOCOL, f"protocol level {connect.level}"
        identity, _, query = connect.username.partition("?")
        parts = identity.strip("/").split("/")
        if len(parts) != 3 or "api-version" not in parse_qs(query):
            return mqtt.NOT_AUTHORISED, "the user name is not hub/device/module/?api-version=…"
        if parts[1:] != [self.device, module] or connect.client_id != f"{self.device}/{module}":
            return mqtt.NOT_AUTHORISED, "client id and user name do not name one module of this device"
        if module not in self._keys:
            return mqtt.NOT_AUTHORISED, "there is no such module"
        reason = check_token(connect.password, self.name, self.device, module, self._keys[module])
        return (mqtt.NOT_AUTHORISED, reason) if reason else (mqtt.ACCEPTED, "")

    async def _handle(self, connection: "_Connection", module: str, packet: mqtt.Packet) -> None:
        match packet.kind:
            case mqtt.PUBLISH:
                message = mqtt.publish_of(packet)
                self.counters["duplicates"] += message.is_duplicate
                self._take(connection, module, message)
                if message.qos:
                    connection.send(mqtt.puback(message.packet_id))
                await self._tell()
            case mqtt.SUBSCRIBE:
                wanted = mqtt.subscribe_of(packet)
                known = self.subscriptions[module]
                known.extend(name for name, _ in wanted.filters if name not in known)
                self._keep()
                connection.send(mqtt.suback(wanted.packet_id, [qos for _, qos in wanted.filters]))
            case mqtt.UNSUBSCRIBE:
                packet_id, filters = mqtt.unsubscribe_of(packet)
                self.subscriptions[module] = [name for name in self.subscriptions[module] if name not in filters]
                self._keep()
                connection.send(mqtt.unsuback(packet_id))
            case mqtt.PINGREQ:
                connection.send(mqtt.pingresp())
            case mqtt.PUBACK:
                mqtt.packet_id_of(packet)
            case _:
                raise mqtt.Malformed(f"a packet of kind {packet.kind}")

    def _take(self, connection: "_Connection", module: str, message: mqtt.Publish) -> None:
        events = f"devices/{self.device}/modules/{module}/messages/events/"
        topic = message.topic
        if topic.startswith(events):
            self._take_telemetry(module, parse_bag(topic[len(events) :]), message)
        elif topic.startswith("$iothub/twin/GET/"):
            connection.answer(200, _rid(topic), self._twins[module].document())
        elif topic.startswith("$iothub/twin/PATCH/properties/reported/"):
            self._take_reported(connection, module, _rid(topic), message.payload)
        elif topic.startswith("$iothub/methods/res/"):
            self._take_method_answer(topic, message.payload)
        else:
            raise mqtt.Malformed(f"a PUBLISH to {topic!r}, which is no topic of {module}")

    def _take_telemetry(self, module: str, bag: dict[str, str], message: mqtt.Publish) -> None:
        size = len(message.payload) + sum(len(name) + len(value) for name, value in bag.items())
        if size > MESSAGE_BYTES:
            # edgeHub acknowledges such a message, and drops it.
            self.counters["oversize"] += 1
            log.warning("%s: a message of %d bytes is over the limit and was dropped", module, size)
            return
        self.store.store(self.device, module, bag, message.payload)
        self.counters["messages"] += 1
        self.counters["wire_bytes"] += len(message.payload) + len(message.topic) + WIRE_HEAD_BYTES
        self.counters["body_bytes"] += len(message.payload)
        self.counters["units"] += -(-size // 4096)

    def _take_reported(self, connection: "_Connection", module: str, rid: str, payload: bytes) -> None:
        try:
            self._twins[module].patch_reported(json.loads(payload))
        except (Rejected, ValueError) as error:
            log.warning("%s: reported properties refused: %s", module, error)
            connection.answer(400, rid)
            return
        self._keep()
        connection.answer(204, rid)

    def _take_method_answer(self, topic: str, payload: bytes) -> None:
        status = topic.split("/")[3]
        call = self._calls.get(_rid(topic))
        if call is not None and not call.done() and status.isdecimal():
            with suppress(ValueError):
                call.set_result((int(status), json.loads(payload) if payload else None))

    def _notify_desired(self, module: str, patch: dict[str, Any]) -> None:
        connection = self._connections.get(module)
        if connection is not None and TWIN_PATCHES in self.subscriptions[module]:
            version = self._twins[module].desired_version
            body = json.dumps({**patch, "$version": version}).encode()
            connection.publish(f"$iothub/twin/PATCH/properties/desired/?$version={version}", body)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _keep(self) -> None:
        state = {
            "twins": {module: twin.to_dict() for module, twin in self._twins.items()},
            "subscriptions": self.subscriptions,
        }
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(state))
        draft.replace(self._path)


class _Connection:
    def __init__(self, hub: Hub, writer: asyncio.StreamWriter) -> None:
        self.module = ""
        self._hub = hub
        self._writer = writer
        self._packet_id = 0

    def send(self, packet: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(packet)

    def publish(self, topic: str, payload: bytes) -> None:
        self._packet_id = self._packet_id % 65_535 + 1
        self.send(mqtt.publish(topic, payload, self._packet_id))

    def answer(self, status: int, rid: str, document: Any = None) -> None:
        """A twin answer; who has not subscribed to them gets none, like from the real hub."""
        if TWIN_ANSWERS in self._hub.subscriptions[self.module]:
            body = b"" if document is None else json.dumps(document).encode()
            self.publish(f"$iothub/twin/res/{status}/?$rid={rid}", body)

    def close(self) -> None:
        with suppress(RuntimeError):  # the loop may be closing already
            self._writer.close()


def check_token(token: str, hub: str, device: str, module: str, key: bytes) -> str:
    """What is wrong with a SAS token; empty if nothing is. The signature covers `sr` as it is encoded in the token."""
    kind, _, rest = token.partition(" ")
    fields = dict(part.partition("=")[::2] for part in rest.split("&"))
    if kind != "SharedAccessSignature" or not {"sr", "sig", "se"} <= fields.keys():
        return "the password is no SAS token"
    expected = f"{hub}/devices/{device}/modules/{module}"
    if unquote_plus(fields["sr"]).lower() != expected.lower():
        return f"the token is for {unquote(fields['sr'])}, not {expected}"
    digest = hmac.digest(key, f"{fields['sr']}\n{fields['se']}".encode(), hashlib.sha256)
    if not hmac.compare_digest(unquote(fields["sig"]).encode(), base64.b64encode(digest)):
        return "the token's signature is wrong"
    if not fields["se"].isdecimal() or int(fields["se"]) < time.time() - CLOCK_SKEW_SECONDS:
        return "the token has expired"
    return ""


def _rid(topic: str) -> str:
    return parse_qs(topic.partition("?")[2]).get("$rid", [""])[0]

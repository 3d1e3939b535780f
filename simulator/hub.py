"""IoT Hub behind an edgeHub, as one device's modules see it: what they publish, and what the cloud does to them.

    PUBLISH telemetry ──► routes ──► the cloud's folder      desired properties, method calls ──► PUBLISH to the module
    PUBLISH twin GET, reported PATCH, method answers ──► twin answers

Answers are edgeHub's: QoS 1, no `$version` after a reported patch, nothing replayed after an outage. Twins outlive the
hub: see simulator/memory.py. Connections and sessions are the broker's.
"""

import asyncio
import copy
import json
import logging
import re
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from simulator import mqtt
from simulator.broker import Broker
from simulator.connection import METHOD_CALLS, TWIN_PATCHES, Connection, request_id
from simulator.router import Message, Router, forever, input_topic
from simulator.telemetry import Bag, bag_bytes, parse_bag
from simulator.twin import Rejected, Twin, difference, parse

log = logging.getLogger(__name__)

ACKNOWLEDGE_SECONDS = 30.0
MESSAGE_BYTES = 262_144
METERED_BYTES = 4096
METHOD_BYTES = 128 * 1024
# Printable ASCII without what IoT Hub excludes, nor what no MQTT topic may have.
METHOD_NAME = re.compile(r"[!%&'*.^_`|~0-9A-Za-z-]{1,100}")


class NoAnswer(Exception):
    """The module is not there (404) or did not answer in time (504)."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


class Hub(Broker):
    """on_message gets (identity, property bag, body) of each message that is stored for the cloud.

    counters, beside the broker's: messages, body_bytes, wire_bytes (MQTT packets, before TLS), units (of 4 KB, as
    billed), oversize.
    """

    def __init__(self, name: str, device: str, address: str, folder: Path, keys: dict[str, bytes]) -> None:
        super().__init__(name, device, address, folder, keys)
        self.on_message: Callable[[str, Bag, bytes], None] | None = None
        self._calls: dict[str, asyncio.Future[tuple[int, Any]]] = {}
        self._cut_twins: dict[str, Twin] | None = None
        self.router = Router(
            folder / "queues",
            self.counters,
            self._to_cloud,
            self._listening,
            self._to_input,
            self.tell,
            self.clock.now,
        )
        self._configure_routes()

    @property
    def messages_dir(self) -> Path:
        return self.store.folder

    async def start(self, certificate: Path, key: Path) -> None:
        """Raises OSError where the address cannot be bound."""
        await super().start(certificate, key)
        self.router.start()

    async def stop(self) -> None:
        await super().stop()
        await self.router.stop()

    # What the cloud side does

    def add_identity(
        self, identity: str, key: bytes, secondary: bytes = b"", thumbprints: Collection[str] = ()
    ) -> None:
        """Let in who has one of these keys, or the certificate of such a thumbprint (SHA-1 or SHA-256, upper case).

        Twin and subscriptions are those of its last time in this state folder.
        """
        self.identities.add(identity, key, secondary, thumbprints)
        self._memory.recall(identity)

    def bar(self, identity: str) -> None:
        """Let it in no longer; its twin stays."""
        self.identities.bar(identity)
        self.disconnect(identity)

    def remove_identity(self, identity: str) -> None:
        """With its twin; its connection is cut."""
        self.bar(identity)
        self._memory.forget(identity)
        self._keep()

    def twin(self, module: str) -> Twin:
        """To look at; what changes here alone is not sent to the module: use patch_desired."""
        return self._memory.twins[module]

    def set_desired(self, module: str, desired: dict[str, Any]) -> None:
        """Replace the desired section, as a deployment does. The same deployment again changes nothing.

        Raises Rejected.
        """
        if self._memory.deployed.get(module) == desired:
            return
        self.replace_desired(module, desired)
        self._memory.deployed[module] = desired
        self._keep()

    def replace_desired(self, module: str, desired: dict[str, Any]) -> None:
        """Raises Rejected."""
        if self._memory.twins[module].replace_desired(desired):
            self._keep()
            self._notify_desired(module, desired)

    def patch_desired(self, module: str, patch: dict[str, Any]) -> None:
        """Raises Rejected."""
        self._memory.twins[module].patch_desired(patch)
        self._keep()
        self._notify_desired(module, patch)

    def set_tags(self, module: str, tags: dict[str, Any], *, merge: bool) -> None:
        """Tags of a twin: for the cloud side alone. Raises Rejected."""
        self._memory.twins[module].set_tags(tags, merge=merge)
        self._keep()

    async def call(
        self, module: str, method: str, payload: Any = None, timeout_s: float = 30.0, connect_s: float = 0.0
    ) -> tuple[int, Any]:
        """A direct method: status and payload of its answer. Raises NoAnswer; ValueError: a wrong name, or too long.

        connect_s: how long to wait for a module that is not there, or takes no methods yet.
        """
        body = json.dumps(payload).encode()
        if not METHOD_NAME.fullmatch(method):
            raise ValueError(
                f"{method[:100]!r} is no name of a method: 1 to 100 ASCII letters, digits and !%&'*.^_`|~-"
            )
        if len(body) > METHOD_BYTES:
            raise ValueError(f"a payload of {len(body)} bytes is over the limit of {METHOD_BYTES}")
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
        before, self._cut_twins = self._cut_twins, copy.deepcopy(self._memory.twins) if is_cut else None
        for module, old in (before or {}).items():
            new = None if self.identities.is_direct(module) else self._memory.twins.get(module)
            if new and (patch := difference(old.desired, new.desired)):
                self._notify_desired(module, patch)
        self.tell()

    # What modules do

    def _take(self, connection: Connection, module: str, message: mqtt.Publish, wire_bytes: int) -> None:
        events = f"{self.identities.path_of(module)}/messages/events/"
        topic = message.topic
        if topic.startswith(events):
            self._take_telemetry(module, parse_bag(topic[len(events) :]), message, wire_bytes)
        elif topic.startswith("$iothub/twin/GET/"):
            self._answer_twin(connection, 200, request_id(topic), self._twin_document(module))
        elif topic.startswith("$iothub/twin/PATCH/properties/reported/"):
            self._take_reported(connection, module, request_id(topic), message.payload)
        elif topic.startswith("$iothub/methods/res/"):
            self._take_method_answer(topic, message.payload)
        else:
            raise mqtt.Malformed(f"a PUBLISH to {topic!r}, which is no topic of {module}")

    def _answer_twin(
        self, connection: Connection, status: int, rid: str, document: Any = None, version: int | None = None
    ) -> None:
        connection.answer(status, rid, document, version)

    def _twin_document(self, module: str) -> dict[str, Any]:
        document = self._memory.twins[module].document()
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

    async def _listening(self, module: str) -> None:
        """Return once the module is there and has subscribed to its inputs."""
        inputs = f"{self.identities.path_of(module)}/inputs/#"
        await forever(lambda: self.is_connected(module) and inputs in self.subscriptions[module], self.changed)

    async def _to_input(self, module: str, input_name: str, message: Message) -> bool:
        """Send to a module that listens, and wait for its acknowledgement; edgeHub does so for 30 s."""
        root = self.identities.path_of(module)
        topic = input_topic(root, input_name, message)
        return await self._connections[module].deliver(f"{root}/inputs/#", topic, message.body, ACKNOWLEDGE_SECONDS)

    def _take_reported(self, connection: Connection, module: str, rid: str, payload: bytes) -> None:
        try:
            self._memory.twins[module].patch_reported(parse(payload))
        except Rejected as error:
            log.warning("%s: reported properties refused: %s", module, error)
            self._answer_twin(connection, 400, rid)
            return
        self._keep()
        version = self._memory.twins[module].reported_version
        self._answer_twin(connection, 204, rid, None, version if self.identities.is_direct(module) else None)
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
            version = self._memory.twins[module].desired_version
            body = json.dumps({**patch, "$version": version}).encode()
            connection.publish(TWIN_PATCHES, f"$iothub/twin/PATCH/properties/desired/?$version={version}", body)

    def _configure_routes(self) -> None:
        twin = self._memory.twins.get("$edgeHub")
        self.router.configure(twin.desired if twin else {})

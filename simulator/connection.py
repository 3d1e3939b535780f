"""The hub's end of one client's connection: what goes out, and with which QoS."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

from simulator import mqtt

log = logging.getLogger(__name__)

UNREAD_BYTES = 8 << 20  # that a client may leave unread before it is cut off
REQUEST_ID_CHARACTERS = 256

TWIN_ANSWERS = "$iothub/twin/res/#"
TWIN_PATCHES = "$iothub/twin/PATCH/properties/desired/#"
METHOD_CALLS = "$iothub/methods/POST/#"


class Connection:
    """module, token_expiry and subscriptions (filter to granted QoS) are set once the client has been let in."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.module = ""
        self.token_expiry = 0
        self.subscriptions: Mapping[str, int] = {}
        self.is_closing = False
        self.most_qos = 1
        self._unacknowledged: dict[int, asyncio.Future[bool]] = {}
        self._writer = writer
        self._packet_id = 0

    def send(self, packet: bytes) -> None:
        if self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > UNREAD_BYTES:
            log.warning("%s does not read what it is sent: connection closed", self.module)
            self._writer.transport.abort()
            return
        self._writer.write(packet)

    def publish(self, subscription: str, topic: str, payload: bytes) -> bool:
        """With the QoS that the subscription was granted; false without one: nothing is sent, as by the real hub."""
        return self._publish(subscription, topic, payload) is not None

    async def deliver(self, subscription: str, topic: str, payload: bytes, timeout_s: float) -> bool:
        """Publish, and wait for the acknowledgement; false where there was none."""
        packet_id = self._publish(subscription, topic, payload)
        if not packet_id:
            return packet_id == 0
        done = self._unacknowledged[packet_id] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(done, timeout_s)
        except TimeoutError:
            return False
        finally:
            del self._unacknowledged[packet_id]

    def acknowledged(self, packet_id: int) -> None:
        done = self._unacknowledged.get(packet_id)
        if done is not None and not done.done():
            done.set_result(True)

    def answer(self, status: int, rid: str, document: Any = None, version: int | None = None) -> None:
        """A twin answer."""
        body = b"" if document is None else json.dumps(document).encode()
        more = "" if version is None else f"&$version={version}"
        self.publish(TWIN_ANSWERS, f"$iothub/twin/res/{status}/?$rid={rid}{more}", body)

    def _publish(self, subscription: str, topic: str, payload: bytes) -> int | None:
        """Its packet id; 0 with QoS 0, None without a subscription."""
        if subscription not in self.subscriptions:
            return None
        self._packet_id = self._packet_id % 65_535 + 1
        packet_id = self._packet_id if min(self.subscriptions[subscription], self.most_qos) else 0
        self.send(mqtt.publish(topic, payload, packet_id))
        return packet_id

    def thumbprints(self) -> list[str]:
        """Of the client's certificate, SHA-1 and SHA-256; none without one."""
        tls = self._writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls else None
        if not certificate:
            return []
        return [hashlib.new(name, certificate).hexdigest().upper() for name in ("sha1", "sha256")]

    def close(self) -> None:
        self.is_closing = True
        for waiting in self._unacknowledged.values():
            if not waiting.done():
                waiting.set_result(False)
        with suppress(RuntimeError):  # the loop may be closing already
            self._writer.close()


def request_id(topic: str) -> str:
    """Raises Malformed: edgeHub ends the connection of who sends none."""
    rid = parse_qs(topic.partition("?")[2]).get("$rid", [""])[0]
    if not rid or len(rid) > REQUEST_ID_CHARACTERS:
        raise mqtt.Malformed(f"no request id in {topic[:200]!r}")
    return rid

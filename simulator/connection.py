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


class Connection:
    """module, token_expiry and subscriptions (filter to granted QoS) are set once the client has been let in."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.module = ""
        self.token_expiry = 0
        self.subscriptions: Mapping[str, int] = {}
        self.is_closing = False
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
        if subscription not in self.subscriptions:
            return False
        self._packet_id = self._packet_id % 65_535 + 1
        self.send(mqtt.publish(topic, payload, self._packet_id if self.subscriptions[subscription] else 0))
        return True

    def answer(self, status: int, rid: str, document: Any = None) -> None:
        """A twin answer."""
        body = b"" if document is None else json.dumps(document).encode()
        self.publish(TWIN_ANSWERS, f"$iothub/twin/res/{status}/?$rid={rid}", body)

    def thumbprints(self) -> list[str]:
        """Of the client's certificate, SHA-1 and SHA-256; none without one."""
        tls = self._writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls else None
        if not certificate:
            return []
        return [hashlib.new(name, certificate).hexdigest().upper() for name in ("sha1", "sha256")]

    def close(self) -> None:
        self.is_closing = True
        with suppress(RuntimeError):  # the loop may be closing already
            self._writer.close()


def request_id(topic: str) -> str:
    """Raises Malformed: edgeHub ends the connection of who sends none."""
    rid = parse_qs(topic.partition("?")[2]).get("$rid", [""])[0]
    if not rid or len(rid) > REQUEST_ID_CHARACTERS:
        raise mqtt.Malformed(f"no request id in {topic[:200]!r}")
    return rid

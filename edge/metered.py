"""Whether the network costs by the byte just now, as whoever knows says: in a file, or in a topic of a local broker.

    BORDNETZ_METERED=/run/network/metered                  a file, looked at each time
    BORDNETZ_METERED=mqtt://127.0.0.1[:1883][/topic]       a retained topic; mqtts:// with BORDNETZ_CA and a certificate

What begins with 1 means that it does. A topic's last word holds while its broker is away; without any word it does not.
"""

import asyncio
import logging
import os
import random
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import SplitResult, unquote, urlsplit

from edge.errors import CloudUnreachable, InputError

log = logging.getLogger(__name__)

TOPIC = "bordnetz/network/metered"
RETRY_MIN_S, RETRY_MAX_S = 1.0, 60.0


class Metered:
    """source: as in BORDNETZ_METERED. on_change is called when a topic says something new. Raises InputError."""

    def __init__(self, source: str, on_change: Callable[[], None] = lambda: None) -> None:
        self.problem = ""  # why the topic is not heard
        self._path = "" if "://" in source else source
        self._url = source if "://" in source else ""
        self._on_change = on_change
        self._said = False
        if self._url:
            _parts_of(self._url)

    @classmethod
    def from_environment(cls, on_change: Callable[[], None]) -> "Metered":
        return cls(os.environ.get("BORDNETZ_METERED", ""), on_change)

    def __call__(self) -> bool:
        if self._path:
            with suppress(OSError), open(self._path, "rb") as file:
                return file.read(1) == b"1"
        return self._said

    async def run(self, retry_min_s: float = RETRY_MIN_S) -> None:
        """Listen to the topic, if it is one, until cancelled."""
        if not self._url:
            return
        from edge.cloud.mqtt import listen

        parts, topic = _parts_of(self._url)
        user = (unquote(parts.username or "") or None, unquote(parts.password or "") or None)
        delay = retry_min_s
        while True:
            try:
                async for payload in listen(parts.hostname or "", parts.port, parts.scheme == "mqtts", user, topic):
                    self.problem, delay = "", retry_min_s
                    self._hear(payload)
            except (CloudUnreachable, InputError) as error:
                if str(error) != self.problem:  # once for each reason
                    log.warning("BORDNETZ_METERED: %s does not answer: %s", parts.hostname, error)
                self.problem = str(error)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, RETRY_MAX_S)

    def _hear(self, payload: bytes) -> None:
        before, self._said = self._said, payload[:1] == b"1"
        if self._said != before:
            log.info("the network %s by the byte", "costs" if self._said else "does not cost")
            self._on_change()


def _parts_of(url: str) -> tuple[SplitResult, str]:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (raises where it is no number)
    except ValueError:
        parts = urlsplit("")
    topic = parts.path.strip("/") or TOPIC
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or any(sign in url for sign in "+#?"):
        way_out = "give a file, or mqtt://host, mqtt://host:port/topic, mqtts://…"
        raise InputError("BORDNETZ_METERED", f"{url[:60]!r} is no topic of a broker", way_out)
    return parts, topic

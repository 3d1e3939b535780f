"""Cloud sides: what the modules ask of one, so that they do not care which it is."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

# Takes the whole twin, {"desired": {...}, "reported": {...}}; called after every connect and every change.
OnTwin = Callable[[dict[str, Any]], None]
# Takes a method's name and payload; returns status and payload of the answer.
OnMethod = Callable[[str, Any], Awaitable[tuple[int, Any]]]


class Cloud(Protocol):
    """One module's connection. run holds it; the other calls fail with CloudUnreachable while it is down."""

    on_twin: OnTwin
    on_method: OnMethod | None

    async def run(self) -> None:
        """Connect and stay connected until cancelled. Raises CloudUnreachable if only a new process can help."""

    async def wait_connected(self) -> None:
        """Return once there is a connection."""

    async def send(self, body: bytes, message_id: str, properties: Mapping[str, str], timeout_s: float) -> None:
        """Return once the cloud has the message. Raises CloudUnreachable, MessageRejected.

        Messages go out in the order of the calls. properties are system properties by their wire names.
        """

    async def report(self, patch: dict[str, Any]) -> None:
        """Merge a patch into the reported properties. Raises CloudUnreachable, MessageRejected."""

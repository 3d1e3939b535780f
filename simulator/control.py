"""How a second terminal talks to a running simulator: the service API on a unix socket in the state folder.

    bordnetz twin get uplink ──► <state>/control.sock ──► GET /twins/{device}/modules/uplink

Beside the service API it has `GET /simulator` (what runs, and how to reach it) and `PATCH /simulator/faults`. Who may
open the state folder may do all of it.
"""

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.errors import EdgeError, InputError
from simulator import http
from simulator.http import Answer, Handler

SOCKET = "control.sock"
BODY_BYTES = 1 << 20
REQUESTS = 64  # at a time


class Refused(EdgeError):
    """The simulator would not do it."""


class Control:
    """Serves requests of one handler on the control socket."""

    def __init__(self, state: Path, handler: Handler) -> None:
        self._state = state
        self._server = http.Server(handler, name="control request", most_body_bytes=BODY_BYTES, most_requests=REQUESTS)

    async def start(self) -> None:
        with _short(self._state) as folder:
            await self._server.start_unix(folder / SOCKET, 0o600)

    async def stop(self) -> None:
        await self._server.stop()
        (self._state / SOCKET).unlink(missing_ok=True)


def ask(state: Path, method: str, path: str, document: Any = None) -> Any:
    """The document of an answer. Raises InputError: no simulator runs there; Refused: it would not."""

    size = len(http.encoded(document))
    if size > BODY_BYTES:  # the simulator would close the connection in the middle of it
        raise Refused(f"400: a body of {size:,} bytes; {BODY_BYTES:,} are allowed")

    async def once() -> Answer:
        with _short(state) as folder:
            return await http.ask(folder / SOCKET, method, path, document)

    try:
        answer = asyncio.run(once())
    except (OSError, EOFError) as error:
        raise InputError(state, "no simulator runs there", "start bordnetz simulate, or name its --state") from error
    if answer.status >= 400:
        document = answer.document or {}
        of_service = str(document.get("Message", "")).partition(";")[2]  # ErrorCode:…;and what a person reads
        raise Refused(f"{answer.status}: {of_service or document.get('message') or 'refused'}")
    return answer.document


@contextmanager
def held(state: Path) -> Iterator[None]:
    """Have a state folder for oneself. Raises InputError: another simulator has it, or it cannot be made."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        number = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(state, f"cannot be used ({error.strerror})", "choose another folder with --state") from error
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(number)
        raise InputError(state, "another simulator runs there", "choose another folder with --state") from error
    try:
        yield
    finally:
        os.close(number)


@contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """The folder under a name that fits into a socket's address, which has 107 bytes."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{number}")
    finally:
        os.close(number)

"""Campaigns by reference: a document that is larger than a twin allows, from a URL or a file.

    twin: {"document": {"url": "https://…", "bytes": 81234, "sha256": "…"}, "campaigns": {…}}
                │                                                              └─ beside those of the document
                └──fetch──► size, SHA-256, JSON with campaigns ──► document-collector.json, durable ──► Twin

What is not as the reference says, or is no document, is refused with the reason, and the document before it goes on;
so it does while the new one is fetched, and after a restart without network. It is tried again with growing pauses.
Only https, without a proxy; a redirection to anything else is refused. Files lie in the folder that
BORDNETZ_DOCUMENTS names.
"""

import asyncio
import concurrent.futures
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from edge.durable import write_durably
from edge.errors import InputError

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
PIECE_BYTES = 16 << 10
QUIET_SECONDS = 10.0  # without a byte
FETCH_SECONDS = 120.0  # for the whole
RETRY_MIN_SECONDS, RETRY_MAX_SECONDS = 10.0, 3600.0


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """url (https) or file (its name in the folder of documents); bytes and sha256 (hex digits) of the content."""

    bytes: Annotated[int, msgspec.Meta(ge=2, le=MOST_BYTES)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    url: Annotated[str, msgspec.Meta(max_length=2048)] | None = None
    file: Annotated[str, msgspec.Meta(max_length=255)] | None = None

    def __post_init__(self) -> None:
        if (self.url is None) == (self.file is None):
            raise ValueError("give url or file, one of them")

    def __str__(self) -> str:
        """Without what may be a secret: a URL's query, and a password in front of its host."""
        place = self.file or str(self.url).partition("?")[0].rpartition("@")[2].removeprefix("https://")
        return "document " + "".join(sign if sign.isprintable() else "?" for sign in place)


def fetch(reference: Reference, folder: Path | None) -> bytes:
    """The document, and nothing that is not what the reference says. Takes its time: for a thread.

    Raises InputError: it cannot be had, is another, or holds no campaigns.
    """
    content = _from_url(reference) if reference.url is not None else _from_file(reference, folder)
    if len(content) != reference.bytes:
        raise InputError(reference, f"has {len(content)} bytes, not {reference.bytes}", "correct the reference")
    if hashlib.sha256(content).hexdigest() != reference.sha256:
        raise InputError(reference, "is not the one that the reference names (SHA-256)", "correct the reference")
    parse(reference, content)
    return content


def parse(place: object, content: bytes) -> dict[str, Any]:
    """Its campaigns, each still to be checked. Raises InputError."""
    try:
        campaigns = msgspec.json.decode(content)["campaigns"]
        if not isinstance(campaigns, dict):
            raise TypeError("campaigns is no object")
        return campaigns
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(place, f"is no document ({error})", '{"campaigns": {…}}') from error


def _from_file(reference: Reference, folder: Path | None) -> bytes:
    if folder is None:
        raise InputError(reference, "cannot be looked for", "set BORDNETZ_DOCUMENTS to the folder of documents")
    try:
        path = (folder / str(reference.file)).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise InputError(reference, "is not in the folder of documents", "give its name there")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(reference, "is no plain file", "give a file")
            return file.read(reference.bytes + 1)
    except (OSError, ValueError) as error:
        raise InputError(reference, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _from_url(reference: Reference) -> bytes:
    import http.client  # these here: a vehicle hardly ever needs them, and they take memory
    import urllib.error
    import urllib.request

    class Redirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request: Any, file: Any, code: int, text: str, headers: Any, url: str) -> Any:
            if not url.startswith("https://"):
                raise InputError(reference, "is redirected to something that is not https", "give the final URL")
            return super().redirect_request(request, file, code, text, headers, url)

    if not str(reference.url).startswith("https://"):
        raise InputError(reference, "is not https", "give an https URL")
    opener = urllib.request.OpenerDirector()
    handlers: list[Any] = [
        urllib.request.HTTPSHandler(),
        Redirect(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    deadline = time.monotonic() + FETCH_SECONDS
    content = bytearray()
    try:
        with opener.open(str(reference.url), timeout=QUIET_SECONDS) as response:
            length = response.headers.get("Content-Length")
            if length is not None and length != str(reference.bytes):
                raise InputError(reference, f"has {length[:20]} bytes, not {reference.bytes}", "correct the reference")
            while len(content) <= reference.bytes and (piece := response.read1(PIECE_BYTES)):
                content += piece
                if time.monotonic() > deadline:
                    raise InputError(reference, f"did not come within {FETCH_SECONDS:.0f} s")
    except urllib.error.HTTPError as error:
        raise InputError(reference, f"the server answers {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        # Of an invalid URL the text is the URL, with what may be a secret in it.
        said = f": {getattr(error, 'reason', None) or error}"[:120] if isinstance(error, OSError) else ""
        raise InputError(reference, f"cannot be fetched ({type(error).__name__}{said})") from error
    if len(content) < reference.bytes:
        raise InputError(reference, f"was cut: {len(content)} of {reference.bytes} bytes came")
    return bytes(content)


class Documents:
    """Has the document that a twin refers to, sooner or later. on_change: look at expand() again."""

    def __init__(self, path: Path, folder: Path | None, on_change: Callable[[], None] = lambda: None) -> None:
        self.on_change = on_change
        self._path = path
        self._folder = folder
        self._wanted: Reference | None = None
        self._problem = ""
        self._wake = asyncio.Event()

    def expand(self, desired: dict[str, Any]) -> tuple[dict[str, Any], str, dict[str, str]]:
        """The desired properties with the document's campaigns; what names that document; what is to be refused.

        A campaign that the twin has itself goes before the document's of the same name.
        """
        given = desired.get("document")
        if given is None:
            self._want(None)
            with suppress(OSError):
                self._path.unlink()
            return desired, "", {}
        name, campaigns = self._stored()
        try:
            reference = msgspec.convert(given, Reference)
        except (msgspec.ValidationError, ValueError):
            reference = None  # refused by who reads the settings
        waits = reference is not None and reference.sha256 != name
        self._want(reference if waits else None)
        own = desired.get("campaigns")
        if own is None or isinstance(own, dict):
            desired = {**desired, "campaigns": {**campaigns, **(own or {})}}
        going_on = "; the one before it goes on" if name else ""
        said = self._problem or f"{reference}: is being fetched"
        return desired, name, {"document": said + going_on} if waits else {}

    def _want(self, reference: Reference | None) -> None:
        if reference != self._wanted:
            self._wanted, self._problem = reference, ""
            self._wake.set()

    def _stored(self) -> tuple[str, dict[str, Any]]:
        """SHA-256 and campaigns of the document that is here; nothing if there is none, or it is damaged."""
        try:
            name, _, content = self._path.read_bytes().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != name:
                raise InputError(self._path, "is damaged")
            return name.decode(), parse(self._path, content)
        except FileNotFoundError:
            return "", {}
        except (OSError, InputError) as error:
            log.warning("the document that was kept cannot be used: %s", error)
            return "", {}

    async def run(self) -> None:
        """Fetch what is wanted, until cancelled."""
        pause_s = RETRY_MIN_SECONDS
        while True:
            self._wake.clear()
            reference = self._wanted
            if reference is None:
                await self._wake.wait()
                pause_s = RETRY_MIN_SECONDS
                continue
            if await self._get(reference):
                continue
            try:
                async with asyncio.timeout(pause_s * (0.5 + os.urandom(1)[0] / 512)):  # importing random takes memory
                    await self._wake.wait()
                pause_s = RETRY_MIN_SECONDS
            except TimeoutError:
                pause_s = min(2 * pause_s, RETRY_MAX_SECONDS)

    async def _get(self, reference: Reference) -> bool:
        """True if something else is wanted now, or nothing."""
        try:
            content = await _in_thread(lambda: fetch(reference, self._folder))
            if reference == self._wanted:
                parts = reference.sha256.encode(), b"\n", content
                await _in_thread(lambda: write_durably(self._path, parts))
        except (InputError, OSError) as error:
            if reference == self._wanted and str(error) != self._problem:
                log.warning("%s", error)
                self._problem = str(error)
                self.on_change()
            return reference != self._wanted
        if reference == self._wanted:
            log.info("%s is here", reference)
            self.on_change()  # which finds that it is wanted no more
        return reference != self._wanted


T = TypeVar("T")


async def _in_thread(work: Callable[[], T]) -> T:
    """In a thread that nobody waits for when the module stops."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(done: "concurrent.futures.Future[T]") -> None:
        with suppress(asyncio.InvalidStateError):  # nobody waits any more
            if error := done.exception():
                future.set_exception(error)
            else:
                future.set_result(done.result())

    def run() -> None:
        done = concurrent.futures.Future[T]()
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)
        with suppress(RuntimeError):  # the loop is closed: the module has stopped
            loop.call_soon_threadsafe(settle, done)

    threading.Thread(target=run, name="document", daemon=True).start()
    return await future

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
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge.durable import write_durably
from edge.errors import InputError
from edge.reference import Reference

log = logging.getLogger(__name__)

RETRY_MIN_SECONDS, RETRY_MAX_SECONDS = 10.0, 3600.0


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
            return name.decode(), msgspec.json.decode(content)["campaigns"]  # it was looked at before it was stored
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
            from edge.fetch import fetch  # here: it takes memory

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

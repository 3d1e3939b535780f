"""The content that a reference names (edge/reference.py), from a URL or a file; a vehicle hardly ever needs this."""

import hashlib
import http.client
import os
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import InputError
from edge.reference import Reference

PIECE_BYTES = 16 << 10
QUIET_SECONDS = 10.0  # without a byte
FETCH_SECONDS = 120.0  # for the whole


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

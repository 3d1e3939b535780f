"""HTTP/1.1 on a stream, as much of it as the workload API, the method endpoint and IoT Hub's service API need.

One request a connection, bodies with a Content-Length or in chunks. What is no HTTP is closed without an answer.
"""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from simulator import strict
from simulator.tasks import Tasks

HEAD_BYTES = 16 * 1024
REQUEST_SECONDS = 30
NO_CONTENT = 204


class Request(NamedTuple):
    """parts: the path, split and unquoted. headers: names in lower case."""

    method: str
    parts: tuple[str, ...]
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Raises BadRequest."""
        try:
            return strict.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(400, "the body is not JSON") from error


class Answer(NamedTuple):
    """A document of None is an empty body."""

    status: int
    document: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012


class BadRequest(Exception):
    """It is answered with status and a message."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


Handler = Callable[[Request], Awaitable[Answer]]


class Server:
    """Answers requests, so many at a time; further ones are closed without an answer."""

    def __init__(self, handler: Handler, *, name: str, most_body_bytes: int, most_requests: int) -> None:
        self._handler = handler
        self._name = name
        self._most_body_bytes = most_body_bytes
        self._most_requests = most_requests
        self._requests = Tasks()
        self._server: asyncio.Server | None = None

    async def start_unix(self, path: Path, mode: int) -> None:
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._connected, path, limit=HEAD_BYTES)
        path.chmod(mode)

    async def start_tls(self, address: str, port: int, context: ssl.SSLContext) -> None:
        """Raises OSError."""
        self._server = await asyncio.start_server(self._connected, address, port, ssl=context, limit=HEAD_BYTES)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._requests.end()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._requests) < self._most_requests:
            self._requests.start(self._serve(reader, writer), self._name)
        else:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    request = await _read_head(reader)
                    request = request._replace(body=await _read_body(reader, request.headers, self._most_body_bytes))
                answer = await self._handler(request)
            except BadRequest as error:
                answer = Answer(error.status, {"message": str(error)})
            async with asyncio.timeout(REQUEST_SECONDS):
                await _write(writer, answer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, ValueError):
            pass  # a client that went away, or one that does not speak HTTP
        finally:
            with suppress(RuntimeError):  # the loop may be closing already
                writer.close()


async def _read_head(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    url = urlsplit(target)
    parts = tuple(unquote(part) for part in url.path.strip("/").split("/"))
    return Request(method, parts, dict(parse_qsl(url.query)), headers, b"")


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str], most_bytes: int) -> bytes:
    """Raises BadRequest: it is too long."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(_size(int(headers.get("content-length", "0")), most_bytes))
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += await reader.readexactly(_size(size, most_bytes - len(body)))
        if await reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk is longer than it says")
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return body


def _size(size: int, most_bytes: int) -> int:
    if size > most_bytes:
        raise BadRequest(400, f"a body of {size} bytes")
    return size  # readexactly refuses one below zero


def encoded(document: Any) -> bytes:
    """As a body; None is an empty one."""
    return b"" if document is None else json.dumps(document).encode()


async def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    body = encoded(answer.document)
    headers = {"Content-Length": str(len(body)), "Connection": "close", **answer.headers}
    if body:
        headers["Content-Type"] = "application/json; charset=utf-8"
    if answer.status == NO_CONTENT:
        del headers["Content-Length"]
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n{head}\r\n".encode() + body)
    await writer.drain()


async def ask(socket: Path, method: str, path: str, document: Any = None) -> Answer:
    """Send a request to a unix socket; return its answer. Raises OSError, EOFError: there was none."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        body = encoded(document)
        writer.write(f"{method} {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
        text = await reader.read()
        return Answer(int(head[1]), json.loads(text) if text else None)
    finally:
        writer.close()

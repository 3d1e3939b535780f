"""The workload API of one module: HTTP over a unix socket, as much of it as a module client needs.

    GET  /trust-bundle?api-version=…                    {"certificate": "<PEM>"}
    POST /modules/{module}/genid/{genid}/sign?…         {"digest": "<base64 HMAC-SHA256 with the module's key>"}

At most ten requests at a time, as in the real daemon; further ones are closed without an answer.
"""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Collection
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from simulator.tasks import Tasks

REQUESTS_AT_A_TIME = 10
HEAD_BYTES = 16 * 1024
BODY_BYTES = 64 * 1024
REQUEST_SECONDS = 30


class Workload:
    """neighbours: the device's modules. Who asks for one of them here is not its process, and gets 403."""

    def __init__(self, module: str, key: bytes, trust_bundle: str, neighbours: Collection[str] = ()) -> None:
        self._module = module
        self._neighbours = neighbours
        self._key = key
        self._trust_bundle = trust_bundle
        self._requests = Tasks()
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._connected, path, limit=HEAD_BYTES)
        path.chmod(0o666)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._requests.end()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._requests) < REQUESTS_AT_A_TIME:
            self._requests.start(self._serve(reader, writer), f"workload of {self._module}")
        else:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                status, answer = await self._request(reader)
                body = json.dumps(answer).encode()
                reason = HTTPStatus(status).phrase
                head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
                writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
                await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, ValueError):
            pass  # a client that went away, or one that does not speak HTTP
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        size = int(headers.get("content-length", "0"))
        if not 0 <= size <= BODY_BYTES:
            return 400, {"message": f"a body of {size} bytes"}
        return self._answer(method, urlsplit(target).path, await reader.readexactly(size))

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if (method, parts) == ("GET", ["trust-bundle"]):
            return 200, {"certificate": self._trust_bundle}
        if method == "POST" and len(parts) == 5 and parts[0] == "modules" and parts[4] == "sign":
            if parts[1] != self._module:
                status = 403 if parts[1] in self._neighbours else 404
                return status, {"message": f"module {parts[1]} is not the one of this socket"}
            try:
                data = base64.b64decode(json.loads(body)["data"])
            except (ValueError, KeyError, TypeError, RecursionError):
                return 400, {"message": "the body is no sign request"}
            return 200, {"digest": base64.b64encode(hmac.digest(self._key, data, hashlib.sha256)).decode()}
        return 404, {"message": f"no such request: {method} {path}"}

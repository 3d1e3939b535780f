"""The workload API of one module: HTTP over a unix socket, as much of it as a module client needs.

    GET  /trust-bundle?api-version=…                    {"certificate": "<PEM>"}
    POST /modules/{module}/genid/{genid}/sign?…         {"digest": "<base64 HMAC-SHA256 with the module's key>"}

At most ten requests at a time, as in the real daemon; further ones are closed without an answer.
"""

import base64
import hashlib
import hmac
from collections.abc import Collection
from pathlib import Path

from simulator import http
from simulator.http import Answer, BadRequest, Request

REQUESTS_AT_A_TIME = 10
BODY_BYTES = 64 * 1024


class Workload:
    """neighbours: the device's modules. Who asks for one of them here is not its process, and gets 403."""

    def __init__(self, module: str, key: bytes, trust_bundle: str, neighbours: Collection[str] = ()) -> None:
        self._module = module
        self._neighbours = neighbours
        self._key = key
        self._trust_bundle = trust_bundle
        self._server = http.Server(
            self._answer, name=f"workload of {module}", most_body_bytes=BODY_BYTES, most_requests=REQUESTS_AT_A_TIME
        )

    async def start(self, path: Path) -> None:
        await self._server.start_unix(path, 0o666)

    async def stop(self) -> None:
        await self._server.stop()

    async def _answer(self, request: Request) -> Answer:
        match request.method, request.parts:
            case "GET", ("trust-bundle",):
                return Answer(200, {"certificate": self._trust_bundle})
            case "POST", ("modules", module, "genid", _, "sign"):
                if module != self._module:
                    status = 403 if module in self._neighbours else 404
                    raise BadRequest(status, f"module {module} is not the one of this socket")
                return Answer(200, {"digest": self._sign(request)})
        raise BadRequest(404, f"no such request: {request.method} /{'/'.join(request.parts)}")

    def _sign(self, request: Request) -> str:
        try:
            data = base64.b64decode(request.json()["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadRequest(400, "the body is no sign request") from error
        return base64.b64encode(hmac.digest(self._key, data, hashlib.sha256)).decode()

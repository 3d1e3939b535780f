"""The workload API of one module: HTTP over a unix socket, as much of it as a module client needs.

    GET  /trust-bundle                                    {"certificate": "<PEM>"}
    POST /modules/{module}/genid/{genid}/sign             {"digest": "<base64 HMAC-SHA256 with the module's key>"}
    POST /modules/…/genid/…/certificate/server            {"privateKey": …, "certificate": "<PEM>", "expiration": …}
    POST /modules/…/genid/…/certificate/identity          the same, for a client

At most ten requests at a time, as in the real daemon; further ones are closed without an answer.
"""

import base64
import hashlib
import hmac
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from simulator import http
from simulator.certificates import CLIENT, SERVER, Authority, general_name
from simulator.http import Answer, BadRequest, Request

REQUESTS_AT_A_TIME = 10
BODY_BYTES = 64 * 1024
MOST_NAME = 64  # characters (X.520)
SERVER_DAYS, IDENTITY_DAYS = 30, 7  # the longest, and what a module gets that does not ask


class Workload:
    """identity: hub/device/module. neighbours: the device's modules; who asks for one of them here gets 403."""

    def __init__(self, identity: str, key: bytes, authority: Authority, neighbours: Collection[str] = ()) -> None:
        self._identity = identity
        self._module = identity.rpartition("/")[2]
        self._neighbours = neighbours
        self._key = key
        self._authority = authority
        self._server = http.Server(
            self._answer,
            name=f"workload of {self._module}",
            most_body_bytes=BODY_BYTES,
            most_requests=REQUESTS_AT_A_TIME,
        )

    async def start(self, path: Path) -> None:
        await self._server.start_unix(path, 0o666)

    async def stop(self) -> None:
        await self._server.stop()

    async def _answer(self, request: Request) -> Answer:
        match request.method, request.parts:
            case "GET", ("trust-bundle",):
                return Answer(200, {"certificate": self._authority.file.read_text()})
            case "POST", ("modules", module, "genid", _, *wanted):
                if module != self._module:
                    status = 403 if module in self._neighbours else 404
                    raise BadRequest(status, f"module {module} is not the one of this socket")
                match wanted:
                    case ["sign"]:
                        return Answer(200, {"digest": self._sign(request)})
                    case ["certificate", "server"]:
                        return Answer(201, self._server_certificate(request))
                    case ["certificate", "identity"]:
                        return Answer(201, self._identity_certificate(request))
        raise BadRequest(404, f"no such request: {request.method} /{'/'.join(request.parts)}")

    def _sign(self, request: Request) -> str:
        try:
            data = base64.b64decode(request.json()["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadRequest(400, "the body is no sign request") from error
        return base64.b64encode(hmac.digest(self._key, data, hashlib.sha256)).decode()

    def _server_certificate(self, request: Request) -> dict[str, Any]:
        """For the common name, and the module's own name on the device's network."""
        wanted = request.json()
        common_name = wanted.get("commonName") if isinstance(wanted, dict) else None
        if not isinstance(common_name, str) or not 0 < len(common_name) <= MOST_NAME or not common_name.isascii():
            raise BadRequest(400, f"a server certificate needs a commonName of 1 to {MOST_NAME} ASCII characters")
        names = [general_name(common_name), general_name(self._module)]
        ends = _ends(wanted, SERVER_DAYS)
        return _response(*self._authority.issue(common_name, names, SERVER, ends), ends)

    def _identity_certificate(self, request: Request) -> dict[str, Any]:
        hub, device, module = self._identity.split("/")
        name = x509.UniformResourceIdentifier(f"azureiot://{hub}/devices/{device}/modules/{module}")
        ends = _ends(request.json() if request.body else {}, IDENTITY_DAYS)
        return _response(*self._authority.issue(module, [name], CLIENT, ends), ends)


def _ends(wanted: Any, most_days: int) -> datetime:
    """The time that was asked for (RFC 3339), at most most_days from now. Raises BadRequest."""
    latest = datetime.now(UTC) + timedelta(days=most_days)
    try:
        text = wanted.get("expiration")
        asked = datetime.fromisoformat(text) if text else latest
        if asked.tzinfo is None or asked <= datetime.now(UTC):
            raise BadRequest(400, f"expiration {text} is not a time to come, with its time zone")
    except (AttributeError, TypeError, ValueError) as error:
        raise BadRequest(400, "expiration is no time as in 2027-01-31T08:00:00Z") from error
    return min(asked, latest)


def _response(certificate: bytes, key: bytes, ends: datetime) -> dict[str, Any]:
    return {
        "privateKey": {"type": "key", "ref": None, "bytes": key.decode()},
        "certificate": certificate.decode(),
        "expiration": ends.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }

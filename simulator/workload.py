"""The workload API of one module, as aziot-edged has it: HTTP over a unix socket.

    GET  /trust-bundle, /manifest-trust-bundle            {"certificate": "<PEM>"}
    POST /modules/{module}/genid/{genid}/sign             {"digest": "<base64 HMAC-SHA256 with the module's key>"}
    POST /modules/{module}/genid/{genid}/encrypt          {"ciphertext": …}, for the same module and genid alone
    POST /modules/{module}/genid/{genid}/decrypt          {"plaintext": …}
    POST /modules/…/genid/…/certificate/server            {"privateKey": …, "certificate": "<PEM>", "expiration": …}
    POST /modules/{module}/certificate/identity           the same, for a client

Every request names its api-version. Statuses are edged's: 400 without a body or with bad base64, 422 where the body is
not the JSON that is wanted, 403 for another module, 500 for what cannot be decrypted. At most ten requests at a time;
further ones are closed without an answer.
"""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from simulator import http
from simulator.certificates import CLIENT, SERVER, Authority, general_name
from simulator.http import Answer, BadRequest, Request

API_VERSIONS = (
    "2018-06-28", "2019-01-30", "2019-10-22", "2019-11-05", "2020-07-07", "2020-10-10", "2021-12-07", "2022-08-03",
)  # fmt: skip
REQUESTS_AT_A_TIME = 10
BODY_BYTES = 64 * 1024
MOST_NAME = 64  # characters (X.520)
SERVER_DAYS, IDENTITY_DAYS = 30, 7  # the longest, and what a module gets that does not ask
ENCRYPTION = b"encryption"  # what its key is made for, beside signing
CIPHER_VERSION = b"\2"  # then the ciphertext, then its tag
VECTOR_BYTES = range(8, 129)  # that OpenSSL takes for AES-GCM


class Workload:
    """identity: hub/device/module, whose socket it is. key: of the module; what it encrypts with is made from it."""

    def __init__(self, identity: str, key: bytes, authority: Authority) -> None:
        self._identity = identity
        self._module = identity.rpartition("/")[2]
        self._key = key
        self._cipher = AESGCM(hmac.digest(key, ENCRYPTION, hashlib.sha256))
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
        version = request.query.get("api-version")
        if version not in API_VERSIONS:
            raise BadRequest(400, f"api-version {version!r} is none; for example {API_VERSIONS[-1]}")
        match request.parts:
            case ("trust-bundle",):
                self._check(request, "GET")
                return Answer(200, {"certificate": self._authority.file.read_text()})
            case ("manifest-trust-bundle",):
                self._check(request, "GET")
                return Answer(200, {"certificate": ""})
            case ("modules", module, "genid", _, "sign"):
                self._check(request, "POST", module)
                return Answer(200, {"digest": self._sign(request)})
            case ("modules", module, "genid", genid, "encrypt"):
                self._check(request, "POST", module)
                return Answer(200, {"ciphertext": self._encrypt(request, genid)})
            case ("modules", module, "genid", genid, "decrypt"):
                self._check(request, "POST", module)
                return Answer(200, {"plaintext": self._decrypt(request, genid)})
            case ("modules", module, "genid", _, "certificate", "server"):
                self._check(request, "POST", module)
                return Answer(201, self._server_certificate(request))
            case ("modules", module, "certificate", "identity"):
                self._check(request, "POST", module)
                return Answer(201, self._identity_certificate(request))
        raise BadRequest(404, f"no such request: {request.method} /{'/'.join(request.parts)}")

    def _check(self, request: Request, method: str, module: str | None = None) -> None:
        if request.method != method:
            raise BadRequest(400, f"method {request.method} is not allowed here, but {method}")
        if module not in (None, self._module):
            raise BadRequest(403, f"module {module} is not the one of this socket")

    def _sign(self, request: Request) -> str:
        (data,) = _decoded(request, "data")
        return base64.b64encode(hmac.digest(self._key, data, hashlib.sha256)).decode()

    def _encrypt(self, request: Request, genid: str) -> str:
        plaintext, vector = _sealing(request, "plaintext")
        sealed = CIPHER_VERSION + self._cipher.encrypt(vector, plaintext, self._bound_to(genid))
        return base64.b64encode(sealed).decode()

    def _decrypt(self, request: Request, genid: str) -> str:
        sealed, vector = _sealing(request, "ciphertext")
        if sealed[:1] != CIPHER_VERSION:
            raise BadRequest(500, "decryption failed: no ciphertext of version 2")
        try:
            return base64.b64encode(self._cipher.decrypt(vector, sealed[1:], self._bound_to(genid))).decode()
        except InvalidTag as error:
            raise BadRequest(500, "decryption failed: not this module's and genid's, or changed") from error

    def _bound_to(self, genid: str) -> bytes:
        # edged joins the two with nothing between: there module "up" with genid "link1" passes for "uplink" with "1".
        return f"{self._module}\0{genid}".encode()

    def _server_certificate(self, request: Request) -> dict[str, Any]:
        """For the common name, and the module's own name on the device's network."""
        wanted = _wanted(request, "commonName")
        common_name = wanted["commonName"]
        if not 0 < len(common_name) <= MOST_NAME or not common_name.isascii():
            raise BadRequest(400, f"a server certificate needs a commonName of 1 to {MOST_NAME} ASCII characters")
        names = [general_name(common_name), general_name(self._module)]
        ends = _ends(wanted, SERVER_DAYS)
        return _response(*self._authority.issue(common_name, names, SERVER, ends), ends)

    def _identity_certificate(self, request: Request) -> dict[str, Any]:
        hub, device, module = self._identity.split("/")
        name = x509.UniformResourceIdentifier(f"azureiot://{hub}/devices/{device}/modules/{module}")
        ends = _ends(_wanted(request) if request.body else {}, IDENTITY_DAYS)
        return _response(*self._authority.issue(module, [name], CLIENT, ends), ends)


def _wanted(request: Request, *names: str) -> dict[str, Any]:
    """The body, which has text under these names. Raises BadRequest."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if not request.body or kind != "application/json":
        raise BadRequest(400, f"missing request body: {len(request.body)} bytes of {kind}, not application/json")
    try:
        wanted = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(422, "the body is not JSON") from error
    if not isinstance(wanted, dict) or not all(isinstance(wanted.get(name), str) for name in names):
        raise BadRequest(422, f"the body is no object with {' and '.join(names) or 'values'} as text")
    return wanted


def _decoded(request: Request, *names: str) -> list[bytes]:
    """What the body has under these names in base64. Raises BadRequest."""
    wanted = _wanted(request, *names)
    try:
        return [base64.b64decode(wanted[name], validate=True) for name in names]
    except ValueError as error:
        raise BadRequest(400, f"invalid base64 encoding of {' or '.join(names)}") from error


def _sealing(request: Request, name: str) -> list[bytes]:
    """A text and its initialization vector. Raises BadRequest."""
    text, vector = _decoded(request, name, "initializationVector")
    if len(vector) not in VECTOR_BYTES:
        raise BadRequest(400, f"an initializationVector has 8 to 128 bytes, not {len(vector)}")
    return [text, vector]


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
        "privateKey": {"type": "key", "bytes": key.decode()},
        "certificate": certificate.decode(),
        "expiration": ends.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }

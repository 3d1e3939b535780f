"""The workload API of a module's socket, as aziot-edged has it, and hostile requests to it."""

import asyncio
import base64
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from simulator import http, sas
from simulator.device import EdgeDevice
from simulator.workload import API_VERSIONS, REQUESTS_AT_A_TIME
from tests.hub_client import MANIFEST, SECONDS, device

__all__ = ["device"]

UPLINK = "/modules/uplink/genid/1"
HEADS = [
    b"POST /a?b=c HTTP/1.1\r\n" + more + b"\r\n"
    for more in (b"Content-Length: 250\r\n", b"Transfer-Encoding: chunked\r\n")
]


def text(document: bytes | str) -> str:
    return base64.b64encode(document.encode() if isinstance(document, str) else document).decode()


async def ask(
    device: EdgeDevice,
    path: str,
    wanted: Any = None,
    *,
    method: str = "POST",
    version: str = "2022-08-03",
    module="uplink",
) -> tuple[int, Any]:
    answer = await http.ask(device._sockets.path(module), method, f"{path}?api-version={version}", wanted)
    return answer.status, answer.document


async def request(device: EdgeDevice, sent: bytes, module: str = "uplink") -> tuple[int, Any]:
    reader, writer = await asyncio.open_unix_connection(device.environment(module)["IOTEDGE_WORKLOADURI"][7:])
    writer.write(sent)
    try:
        answer = await asyncio.wait_for(reader.read(), SECONDS)
    except ConnectionResetError:
        answer = b""  # closed before it was read
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body)) if answer else (0, None)


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path}?api-version=2022-08-03 HTTP/1.1", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


# -- sign --------------------------------------------------------------------------------------------------------


async def test_the_workload_socket_signs_for_its_own_module_only(device):
    wanted = {"keyId": "primary", "algo": "HMACSHA256", "data": text("text")}
    digest = sas.hmac.digest(device.hub.identities.keys["uplink"], b"text", "sha256")
    assert await ask(device, f"{UPLINK}/sign", wanted) == (200, {"digest": text(digest)})
    for other in ("collector", "unknown", "$edgeHub", ""):
        assert (await ask(device, f"/modules/{other}/genid/1/sign", wanted))[0] == 403


@pytest.mark.parametrize("version", API_VERSIONS)
async def test_every_version_of_the_api_that_edged_knows_is_good(device, version):
    assert (await ask(device, "/trust-bundle", method="GET", version=version))[0] == 200


@pytest.mark.parametrize("query", ["", "?api-version=", "?api-version=2018-06-29", "?api-version=1&api-version=2"])
async def test_a_request_without_a_version_of_the_api_is_refused(device, query):
    status, answer = await request(device, f"GET /trust-bundle{query} HTTP/1.1\r\n\r\n".encode())
    assert (status, "api-version" in answer["message"]) == (400, True)


# -- encrypt and decrypt -----------------------------------------------------------------------------------------


async def test_what_a_module_encrypts_it_gets_back_also_after_a_restart(tmp_path):
    secret, vector = bytes(range(256)), text("a unique vector")
    async with EdgeDevice(MANIFEST, tmp_path / "state", modules_root=tmp_path) as device:
        wanted = {"plaintext": text(secret), "initializationVector": vector}
        status, answer = await ask(device, f"{UPLINK}/encrypt", wanted)
        assert status == 200
        sealed = base64.b64decode(answer["ciphertext"])
        # As edged writes it: version 2, as many bytes as the text has, a tag of 16.
        assert (sealed[0], len(sealed)) == (2, 1 + len(secret) + 16)
        assert secret[:16] not in sealed
    async with EdgeDevice(MANIFEST, tmp_path / "state", modules_root=tmp_path) as device:
        wanted = {"ciphertext": answer["ciphertext"], "initializationVector": vector}
        assert await ask(device, f"{UPLINK}/decrypt", wanted) == (200, {"plaintext": text(secret)})


async def test_no_other_module_or_generation_or_vector_or_changed_text_is_decrypted(device):
    vector = text("a unique vector")
    wanted = {"plaintext": text("secret"), "initializationVector": vector}
    sealed = (await ask(device, f"{UPLINK}/encrypt", wanted))[1]["ciphertext"]
    mine = {"ciphertext": sealed, "initializationVector": vector}
    assert (await ask(device, f"{UPLINK}/decrypt", mine))[0] == 200
    assert (await ask(device, f"{UPLINK}/decrypt", mine, module="collector"))[0] == 403
    raw = base64.b64decode(sealed)
    for path, changed in [
        ("/modules/collector/genid/1", {}),
        ("/modules/uplink/genid/2", {}),
        (UPLINK, {"initializationVector": text("another vector")}),
        *((UPLINK, {"ciphertext": text(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])}) for at in range(len(raw))),
        *((UPLINK, {"ciphertext": text(raw[:size])}) for size in range(len(raw))),
    ]:
        module = path.split("/")[2]
        status, answer = await ask(device, f"{path}/decrypt", {**mine, **changed}, module=module)
        assert (status, answer["message"][:17]) == (500, "decryption failed")


@pytest.mark.parametrize("action", ["encrypt", "decrypt", "sign", "certificate/server"])
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        pytest.param(b"", [], 400, id="nothing"),
        pytest.param(b"{}", ["Content-Type: application/x-www-form-urlencoded"], 400, id="a form, as curl sends it"),
        pytest.param(b"{", [], 422, id="no JSON"),
        pytest.param(b"\xff", [], 422, id="no UTF-8"),
        pytest.param(b"[" * 60_000, [], 422, id="brackets without end"),
        pytest.param(b"[]", [], 422, id="no object"),
        pytest.param(b"{}", ["Content-Type: application/json; charset=utf-8"], 422, id="nothing in it"),
        pytest.param(
            b'{"data": 1, "plaintext": 1, "ciphertext": [], "initializationVector": null, "commonName": {}}',
            [],
            422,
            id="no text",
        ),
        pytest.param(
            json.dumps(
                dict.fromkeys(("data", "plaintext", "ciphertext", "initializationVector", "commonName"), "ä~")
            ).encode(),
            [],
            400,
            id="no base64",
        ),
    ],
)
async def test_what_is_no_request_is_refused_by_edgeds_statuses(device, action, body, headers, status):
    assert (await request(device, post(f"{UPLINK}/{action}", body, *headers)))[0] == status


@pytest.mark.parametrize("size", [0, 7, 129])
async def test_an_initialization_vector_has_8_to_128_bytes(device, size):
    wanted = {"plaintext": text("x"), "ciphertext": text(bytes(40)), "initializationVector": text(bytes(size))}
    for action in ("encrypt", "decrypt"):
        status, answer = await ask(device, f"{UPLINK}/{action}", wanted)
        assert (status, "8 to 128" in answer["message"]) == (400, True)


# -- other requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET /elsewhere?api-version=2022-08-03 HTTP/1.1\r\n\r\n", 404),
        (b"GET /modules/uplink/genid/1/sign?api-version=2022-08-03 HTTP/1.1\r\n\r\n", 400),
        (post("/trust-bundle", b""), 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n", 0),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 0),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n", 0),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz", 0),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 100_000, 0),
        (b"\r\n\r\n", 0),
        (b"x" * 100_000, 0),
    ],
)
async def test_the_workload_socket_answers_or_closes(device, text, status):
    assert (await request(device, text))[0] == status


async def test_a_body_may_come_in_chunks(device):
    head = f"POST {UPLINK}/sign?api-version=2022-08-03 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b'6;name=value\r\n{"data\r\nD\r\n": "dGV4dA=="\r\n1\r\n}\r\n0\r\nTrailer: x\r\n\r\n'
    digest = sas.hmac.digest(device.hub.identities.keys["uplink"], b"text", "sha256")
    assert await request(device, head.encode() + chunks) == (200, {"digest": text(digest)})


@given(st.binary(max_size=300) | st.tuples(st.sampled_from(HEADS), st.binary(max_size=300)).map(b"".join))
def test_whatever_comes_is_a_request_or_no_http(sent):
    async def read() -> None:
        reader = asyncio.StreamReader(limit=http.HEAD_BYTES)
        reader.feed_data(sent)
        reader.feed_eof()
        with suppress(http.BadRequest, EOFError, ValueError, asyncio.LimitOverrunError):
            head = await http._read_head(reader)
            assert len(await http._read_body(reader, head.headers, 200)) <= 200

    asyncio.run(read())


async def test_the_workload_socket_closes_the_eleventh_request_at_a_time(device):
    path = device.environment("uplink")["IOTEDGE_WORKLOADURI"][7:]
    waiting = [await asyncio.open_unix_connection(path) for _ in range(REQUESTS_AT_A_TIME)]
    assert (await request(device, b"GET /trust-bundle?api-version=2022-08-03 HTTP/1.1\r\n\r\n"))[0] == 0
    for _, writer in waiting:
        writer.close()


async def test_without_a_manifest_trust_bundle_it_is_empty(device):
    assert await ask(device, "/manifest-trust-bundle", method="GET") == (200, {"certificate": ""})


# -- certificates ------------------------------------------------------------------------------------------------


async def test_a_module_gets_certificates_that_the_trust_bundle_vouches_for(device):
    trusted = x509.load_pem_x509_certificate(device.ca_file.read_bytes())
    assert await ask(device, "/trust-bundle", method="GET") == (200, {"certificate": device.ca_file.read_text()})
    status, answer = await ask(device, f"{UPLINK}/certificate/server", {"commonName": "Gateway.local"})
    assert status == 201
    server, chained = x509.load_pem_x509_certificates(answer["certificate"].encode())
    assert chained == trusted
    server.verify_directly_issued_by(trusted)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gateway.local", "uplink"]
    assert answer["privateKey"].keys() == {"type", "bytes"}
    key = serialization.load_pem_private_key(answer["privateKey"]["bytes"].encode(), None)
    assert key.public_key() == server.public_key()
    assert server.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)

    soon = datetime.now(UTC) + timedelta(hours=2)
    status, answer = await ask(device, "/modules/uplink/certificate/identity", {"expiration": soon.isoformat()})
    assert status == 201
    identity, _ = x509.load_pem_x509_certificates(answer["certificate"].encode())
    assert abs(identity.not_valid_after_utc - soon) < timedelta(seconds=2)
    names = identity.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "azureiot://simulator.azure-devices.net/devices/simulated-vehicle/modules/uplink"
    ]
    assert (await ask(device, "/modules/uplink/certificate/identity"))[0] == 201
    assert (await ask(device, "/modules/collector/certificate/identity"))[0] == 403


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"commonName": ""}, "needs a commonName"),
        ({"commonName": "ü"}, "needs a commonName"),
        ({"commonName": "a", "expiration": "soon"}, "expiration is no time"),
        ({"commonName": "a", "expiration": 5}, "expiration is no time"),
        ({"commonName": "a", "expiration": "2001-01-01T00:00:00Z"}, "is not a time to come"),
    ],
)
async def test_a_certificate_that_cannot_be_made_is_refused(device, wanted, problem):
    status, answer = await ask(device, f"{UPLINK}/certificate/server", wanted)
    assert (status, problem in answer["message"]) == (400, True)


async def test_the_authority_of_a_state_folder_stays_when_the_address_changes(tmp_path):
    seen = set()
    for _ in range(2):
        async with EdgeDevice(MANIFEST, tmp_path / "state", modules_root=tmp_path) as device:
            seen.add(device.ca_file.read_bytes())
    assert len(seen) == 1
    assert (tmp_path / "state" / "certificates" / "ca.key").stat().st_mode & 0o777 == 0o600

"""The workload API of a module's socket, and hostile requests to it."""

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from simulator import http, sas
from simulator.device import EdgeDevice
from simulator.workload import REQUESTS_AT_A_TIME
from tests.hub_client import MANIFEST, SECONDS, device

__all__ = ["device"]


async def request(device: EdgeDevice, text: bytes, module: str = "uplink") -> tuple[int, Any]:
    reader, writer = await asyncio.open_unix_connection(device.environment(module)["IOTEDGE_WORKLOADURI"][7:])
    writer.write(text)
    try:
        answer = await asyncio.wait_for(reader.read(), SECONDS)
    except ConnectionResetError:
        answer = b""  # closed before it was read
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body)) if answer else (0, None)


def sign(module: str, body: bytes) -> bytes:
    head = f"POST /modules/{module}/genid/1/sign?api-version=2022-08-03 HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def test_the_workload_socket_signs_for_its_own_module_only(device):
    body = json.dumps({"keyId": "primary", "algo": "HMACSHA256", "data": base64.b64encode(b"text").decode()}).encode()
    digest = sas.hmac.digest(device.hub.identities.keys["uplink"], b"text", "sha256")
    assert await request(device, sign("uplink", body)) == (200, {"digest": base64.b64encode(digest).decode()})
    assert (await request(device, sign("collector", body)))[0] == 403
    assert (await request(device, sign("unknown", body)))[0] == 404


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET /trust-bundle?api-version=2022-08-03 HTTP/1.1\r\n\r\n", 200),
        (b"GET /elsewhere HTTP/1.1\r\n\r\n", 404),
        (sign("uplink", b"{"), 400),
        (sign("uplink", b'{"data": 1}'), 400),
        (sign("uplink", b"[" * 60_000), 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n", 0),
        (b"\r\n\r\n", 0),
        (b"x" * 100_000, 0),
    ],
)
async def test_the_workload_socket_answers_or_closes(device, text, status):
    assert (await request(device, text))[0] == status


async def test_the_workload_socket_closes_the_eleventh_request_at_a_time(device):
    path = device.environment("uplink")["IOTEDGE_WORKLOADURI"][7:]
    waiting = [await asyncio.open_unix_connection(path) for _ in range(REQUESTS_AT_A_TIME)]
    assert (await request(device, b"GET /trust-bundle HTTP/1.1\r\n\r\n"))[0] == 0
    for _, writer in waiting:
        writer.close()


async def test_a_module_gets_certificates_that_the_trust_bundle_vouches_for(tmp_path):
    async with EdgeDevice(MANIFEST, tmp_path / "state", modules_root=tmp_path) as device:
        trusted = x509.load_pem_x509_certificate(device.ca_file.read_bytes())
        path, wanted = "/modules/uplink/genid/1/certificate", {"commonName": "Gateway.local"}
        answer = await http.ask(device._sockets.path("uplink"), "POST", f"{path}/server?api-version=2022-08-03", wanted)
        assert answer.status == 201
        server, chained = x509.load_pem_x509_certificates(answer.document["certificate"].encode())
        assert chained == trusted
        server.verify_directly_issued_by(trusted)
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["gateway.local", "uplink"]
        key = serialization.load_pem_private_key(answer.document["privateKey"]["bytes"].encode(), None)
        assert key.public_key() == server.public_key()
        assert server.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)

        soon = datetime.now(UTC) + timedelta(hours=2)
        answer = await http.ask(
            device._sockets.path("uplink"), "POST", f"{path}/identity", {"expiration": soon.isoformat()}
        )
        identity, _ = x509.load_pem_x509_certificates(answer.document["certificate"].encode())
        assert abs(identity.not_valid_after_utc - soon) < timedelta(seconds=2)
        names = identity.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
            "azureiot://simulator.azure-devices.net/devices/simulated-vehicle/modules/uplink"
        ]
        for wanted, problem in [
            ({}, "needs a commonName"),
            ({"commonName": 3}, "needs a commonName"),
            ({"commonName": "ü"}, "needs a commonName"),
            ([], "needs a commonName"),
            ({"commonName": "a", "expiration": "soon"}, "expiration is no time"),
            ({"commonName": "a", "expiration": "2001-01-01T00:00:00Z"}, "is not a time to come"),
        ]:
            answer = await http.ask(device._sockets.path("uplink"), "POST", f"{path}/server", wanted)
            assert answer.status == 400
            assert problem in answer.document["message"]
        answer = await http.ask(
            device._sockets.path("uplink"), "POST", "/modules/collector/genid/1/certificate/identity", {}
        )
        assert answer.status == 403


async def test_the_authority_of_a_state_folder_stays_when_the_address_changes(tmp_path):
    seen = set()
    for _ in range(2):
        async with EdgeDevice(MANIFEST, tmp_path / "state", modules_root=tmp_path) as device:
            seen.add(device.ca_file.read_bytes())
    assert len(seen) == 1
    assert (tmp_path / "state" / "certificates" / "ca.key").stat().st_mode & 0o777 == 0o600

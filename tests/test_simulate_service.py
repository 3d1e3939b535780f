"""The service API of the simulated IoT Hub, by the unmodified service SDK azure-iot-hub over TLS."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.iot.device import X509, MethodResponse
from azure.iot.device.aio import IoTHubDeviceClient, IoTHubModuleClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.device import EdgeDevice, free_address
from simulator.http import Request

hub_sdk = pytest.importorskip("azure.iot.hub", reason="the service SDK azure-iot-hub is not installed")
models = pytest.importorskip("azure.iot.hub.protocol.models")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SECONDS = 15
NAMES = st.sampled_from(
    [
        "tags",
        "properties",
        "desired",
        "modulesContent",
        "content",
        "authentication",
        "type",
        "status",
        "priority",
        "symmetricKey",
        "primaryKey",
        "x509Thumbprint",
        "capabilities",
        "targetCondition",
        "query",
        "labels",
        "properties.desired",
        "$edgeAgent",
        "$edgeHub",
        "modules",
        "routes",
        "truck",
        "uplink",
        "a.b",
    ]
)
CAR = "simulated-vehicle"


def manifest(**modules: dict[str, Any]) -> dict[str, Any]:
    """Modules that no image is built for: identities and twins."""
    base = {"type": "docker", "settings": {"image": "none"}}
    run = {**base, "status": "running", "restartPolicy": "always"}
    agent = {
        "schemaVersion": "1.1",
        "runtime": {"type": "docker"},
        "systemModules": {"edgeAgent": base, "edgeHub": run},
        "modules": dict.fromkeys(modules, run),
    }
    sections = {name: {"properties.desired": desired} for name, desired in modules.items()}
    hub = {"schemaVersion": "1.1", "routes": {}}
    return {
        "modulesContent": {
            "$edgeAgent": {"properties.desired": agent},
            "$edgeHub": {"properties.desired": hub},
            **sections,
        }
    }


@pytest.fixture
async def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EdgeDevice]:
    async with EdgeDevice(
        manifest(uplink={"latency_s": 10}, collector={}), tmp_path / "device", modules_root=tmp_path
    ) as device:
        if device._https._server is None:
            pytest.skip("port 443 cannot be bound here: an ordinary user may not")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(device.ca_file))
        yield device


class Sdk:
    """A manager of the SDK, whose calls block, from the loop that the hub runs on."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            async with asyncio.timeout(SECONDS):
                return await asyncio.to_thread(getattr(self._manager, name), *arguments)

        return call


def registry(device: EdgeDevice) -> Sdk:
    return Sdk(hub_sdk.IoTHubRegistryManager.from_connection_string(device.connection_string))


def configurations(device: EdgeDevice) -> Sdk:
    return Sdk(hub_sdk.IoTHubConfigurationManager.from_connection_string(device.connection_string))


def refused(status: int) -> Any:
    """As the SDK's models raise it."""
    return pytest.raises(Exception, match=rf"({status}|Operation returned an invalid status code)")


async def test_devices_and_modules_are_registered_changed_and_deleted(device):
    sdk = registry(device)
    assert [one.device_id for one in await sdk.get_devices()] == [CAR]
    assert sorted(one.module_id for one in await sdk.get_modules(CAR)) == [
        "$edgeAgent",
        "$edgeHub",
        "collector",
        "uplink",
    ]
    key = base64.b64encode(b"k" * 32).decode()
    made = await sdk.create_device_with_sas("truck", key, key, "enabled", True)
    assert (made.device_id, made.authentication.symmetric_key.primary_key) == ("truck", key)
    assert made.capabilities.iot_edge
    with refused(409):
        await sdk.create_device_with_sas("truck", key, key, "enabled")
    module = await sdk.create_module_with_sas("truck", "probe", "", key, key)
    assert (module.module_id, module.connection_state) == ("probe", "Disconnected")
    changed = await sdk.update_device_with_sas("truck", made.etag, key, key, "disabled", True)
    assert (changed.status, changed.generation_id) == ("disabled", made.generation_id)
    with refused(412):
        await sdk.update_device_with_sas("truck", made.etag, key, key, "enabled")
    with refused(404):
        await sdk.get_module("truck", "nothing")
    with refused(404):
        await sdk.get_device("nothing")
    await sdk.delete_module("truck", "probe")
    assert await sdk.get_modules("truck") == []
    await sdk.delete_device("truck")
    assert [one.device_id for one in await sdk.get_devices()] == [CAR]
    with refused(400):
        await sdk.delete_device(CAR)


async def test_registered_identities_outlive_a_restart(device, tmp_path):
    key = base64.b64encode(b"k" * 32).decode()
    await registry(device).create_device_with_sas("truck", key, key, "enabled")
    await registry(device).update_twin("truck", models.Twin(tags={"fleet": "north"}), "*")
    await device.stop()
    async with EdgeDevice(manifest(uplink={}), tmp_path / "device", modules_root=tmp_path) as again:
        assert (await registry(again).get_device("truck")).authentication.symmetric_key.primary_key == key
        assert (await registry(again).get_twin("truck")).tags == {"fleet": "north"}


async def test_twins_are_read_patched_and_replaced_under_their_etags(device):
    sdk = registry(device)
    twin = await sdk.get_module_twin(CAR, "uplink")
    assert twin.properties.desired["latency_s"] == 10
    assert {"$version", "$metadata"} <= twin.properties.desired.keys()
    patch = models.Twin(
        tags={"line": "a"}, properties=models.TwinProperties(desired={"latency_s": None, "x": {"y": 1}})
    )
    patched = await sdk.update_module_twin(CAR, "uplink", patch, twin.etag)
    assert patched.tags == {"line": "a"}
    assert patched.properties.desired["x"] == {"y": 1}
    assert "latency_s" not in patched.properties.desired
    assert patched.properties.desired["$version"] == twin.properties.desired["$version"] + 1
    assert patched.version > twin.version
    with refused(412):
        await sdk.update_module_twin(CAR, "uplink", patch, twin.etag)
    fresh = models.Twin(properties=models.TwinProperties(desired={"z": 2}))
    replaced = await sdk.replace_module_twin(CAR, "uplink", fresh, patched.etag)
    assert {name for name in replaced.properties.desired if not name.startswith("$")} == {"z"}
    assert not replaced.tags
    with refused(400):
        too_large = models.Twin(tags={"t": "x"}, properties=models.TwinProperties(desired={"v": "x" * 5000}))
        await sdk.update_module_twin(CAR, "uplink", too_large, "*")
    assert not (await sdk.get_module_twin(CAR, "uplink")).tags


async def test_a_query_finds_twins_by_their_tags(device):
    sdk = registry(device)
    await sdk.update_twin(CAR, models.Twin(tags={"fleet": "north", "year": 2026}), "*")

    async def found(query: str) -> list[str]:
        result = await sdk.query_iot_hub(models.QuerySpecification(query=query))
        return [f"{twin.device_id}/{twin.module_id or ''}" for twin in result.items]

    assert await found("SELECT * FROM devices WHERE tags.fleet = 'north' AND tags.year >= 2026") == [f"{CAR}/"]
    assert await found("SELECT * FROM devices WHERE tags.fleet = 'south'") == []
    assert f"{CAR}/uplink" in await found("select * from devices.modules where properties.desired.latency_s = 10")
    with refused(400):
        await found("DELETE FROM devices")


async def test_direct_methods_reach_devices_and_modules(device, monkeypatch):
    sdk = registry(device)
    key = base64.b64encode(b"k" * 32).decode()
    await sdk.create_device_with_sas("truck", key, key, "enabled")
    call = models.CloudToDeviceMethod(method_name="add", payload={"a": 1}, response_timeout_in_seconds=10)
    with refused(404):
        await sdk.invoke_device_method("truck", call)
    text = f"HostName={device.hub.name};DeviceId=truck;SharedAccessKey={key};GatewayHostName={device.address}"
    client = IoTHubDeviceClient.create_from_connection_string(text, server_verification_cert=device.ca_file.read_text())

    async def answer(request: Any) -> None:
        await client.send_method_response(MethodResponse(request.request_id, 201, {"got": request.payload}))

    async with asyncio.timeout(SECONDS):
        await client.connect()
        await asyncio.to_thread(setattr, client, "on_method_request_received", answer)
        result = await sdk.invoke_device_method("truck", call)
        assert (result.status, result.payload) == (201, {"got": {"a": 1}})
        assert (await sdk.get_device("truck")).connection_state == "Connected"
        await client.shutdown()


async def test_a_module_calls_a_method_of_another_over_https(device, monkeypatch):
    clients = []
    for name in ("uplink", "collector"):
        for variable, value in device.environment(name).items():
            monkeypatch.setenv(variable, value)
        clients.append(await asyncio.to_thread(IoTHubModuleClient.create_from_edge_environment))
    caller, callee = clients

    async def answer(request: Any) -> None:
        await callee.send_method_response(MethodResponse(request.request_id, 200, [request.name, request.payload]))

    async with asyncio.timeout(SECONDS):
        await callee.connect()
        await asyncio.to_thread(setattr, callee, "on_method_request_received", answer)
        await caller.connect()
        call = {"methodName": "flush", "payload": 7, "responseTimeoutInSeconds": 10, "connectTimeoutInSeconds": 5}
        assert await caller.invoke_method(call, CAR, "collector") == {"status": 200, "payload": ["flush", 7]}
        with pytest.raises(Exception, match="Unexpected failure"):
            await caller.invoke_method({**call, "connectTimeoutInSeconds": 0}, CAR, "nobody")
        for client in clients:
            await client.shutdown()


async def test_content_is_applied_to_the_device(device):
    sdk = configurations(device)
    content = manifest(uplink={"latency_s": 1}, extra={"x": 1})
    await sdk.apply_configuration_on_edge_device(
        CAR, models.ConfigurationContent(modules_content=content["modulesContent"])
    )
    assert sorted(device.modules) == ["extra", "uplink"]
    assert device.hub.twin("uplink").desired == {"latency_s": 1}
    assert device.hub.twin("extra").desired == {"x": 1}
    names = {one.module_id for one in await registry(device).get_modules(CAR)}
    assert names == {"$edgeAgent", "$edgeHub", "extra", "uplink"}
    with refused(400):
        bad = {**content["modulesContent"], "uplink": {"properties.desired": {"a.b": 1}}}
        await sdk.apply_configuration_on_edge_device(CAR, models.ConfigurationContent(modules_content=bad))
    assert device.hub.twin("uplink").desired == {"latency_s": 1}


def configuration(name: str, content: dict[str, Any], condition: str, priority: int) -> Any:
    return models.Configuration(
        id=name,
        content=models.ConfigurationContent(modules_content=content),
        target_condition=condition,
        priority=priority,
        labels={"by": "test"},
    )


async def test_automatic_deployments_follow_tags_priorities_and_layers(device):
    sdk = configurations(device)
    base = manifest(uplink={"latency_s": 5})["modulesContent"]
    layer = {"uplink": {"properties.desired.tuning": {"units": 4}}}
    north = "tags.fleet = 'north'"
    await sdk.create_configuration(configuration("base", base, north, 1))
    await sdk.create_configuration(configuration("layer", layer, north, 2))
    other = manifest(other={})["modulesContent"]
    await sdk.create_configuration(configuration("other", other, f"deviceId = '{CAR}' AND tags.fleet = 'south'", 9))
    assert sorted(device.modules) == ["collector", "uplink"]  # nobody is targeted yet
    await registry(device).update_twin(CAR, models.Twin(tags={"fleet": "north"}), "*")
    assert sorted(device.modules) == ["uplink"]
    assert device.hub.twin("uplink").desired == {"latency_s": 5, "tuning": {"units": 4}}
    shown = await sdk.get_configuration("base")
    assert shown.system_metrics.results == {"targetedCount": 1}
    await registry(device).update_twin(CAR, models.Twin(tags={"fleet": "south"}), "*")
    assert sorted(device.modules) == ["other"]
    assert sorted(one.id for one in await sdk.get_configurations()) == ["base", "layer", "other"]
    with refused(412):
        await sdk.update_configuration(configuration("base", base, "*", 1), "0")
    with refused(400):
        await sdk.create_configuration(configuration("bad", base, "tags.x = ", 1))
    await sdk.delete_configuration("other")
    assert sorted(one.id for one in await sdk.get_configurations()) == ["base", "layer"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 70_000)
    | st.sampled_from(["", "x", "*", "tags.x = 'y'", "running", "sas"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
PARTS = st.sampled_from(
    f"devices twins modules methods configurations query testQueries applyConfigurationContent statistics service {CAR}"
    " uplink $edgeHub truck a/b ü ".split(" ")
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(
    st.sampled_from(["GET", "PUT", "POST", "PATCH", "DELETE", "BREW"]),
    st.lists(PARTS, max_size=5),
    JSON | st.dictionaries(NAMES, JSON, max_size=5),
    st.sampled_from([{}, {"if-match": "*"}, {"if-match": '"1"'}]),
    st.sampled_from([{}, {"top": "x"}, {"top": "1"}]),
)
def test_no_request_crashes_the_service(fuzzed, method, parts, document, headers, query):
    if parts[-1:] == ["methods"] and method == "POST":
        document = {"methodName": document}  # none is there to answer: it must not be waited for
    request = Request(method, tuple(parts), query, headers, json.dumps(document).encode())
    loop, device = fuzzed
    answer = loop.run_until_complete(device.service.answer(request))
    assert answer.status in {200, 204, 400, 404, 409, 412}
    json.dumps(answer.document)


@pytest.fixture
def fuzzed(tmp_path: Path) -> Iterator[tuple[asyncio.AbstractEventLoop, EdgeDevice]]:
    """A device that does not listen, and a loop for it: Hypothesis runs many requests on one."""
    loop = asyncio.new_event_loop()
    device = EdgeDevice(manifest(uplink={}), tmp_path / "device", modules_root=tmp_path, address=free_address())
    loop.run_until_complete(device.__aenter__())
    yield loop, device
    loop.run_until_complete(device.stop())
    loop.close()


async def test_who_has_another_key_is_refused(device):
    wrong = device.connection_string.rpartition("SharedAccessKey=")[0] + "SharedAccessKey=" + "A" * 44
    sdk = Sdk(hub_sdk.IoTHubRegistryManager.from_connection_string(wrong))
    with refused(401):
        await sdk.get_devices()


def self_signed(folder: Path, name: str) -> tuple[Path, Path, str]:
    """Paths of a certificate and its key, and the thumbprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
    certificate = builder.not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(pem))
    paths[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return *paths, certificate.fingerprint(hashes.SHA256()).hex()


async def test_a_certificate_lets_in_whose_thumbprint_is_registered(device, tmp_path):
    certificate, key, thumbprint = self_signed(tmp_path, "truck")
    other, other_key, _ = self_signed(tmp_path, "other")
    await registry(device).create_device_with_x509("truck", thumbprint, thumbprint, "enabled")
    for path in (certificate, other):
        device.hub.trust(path)

    def client(certificate: Path, key: Path) -> IoTHubDeviceClient:
        return IoTHubDeviceClient.create_from_x509_certificate(
            x509=X509(cert_file=str(certificate), key_file=str(key)),
            hostname=device.hub.name,
            device_id="truck",
            gateway_hostname=device.address,
            server_verification_cert=device.ca_file.read_text(),
            connection_retry=False,
        )

    async with asyncio.timeout(SECONDS):
        good, bad = client(certificate, key), client(other, other_key)
        await good.connect()
        await good.send_message(json.dumps({"a": 1}))
        assert device.hub.counters["messages"] == 1
        with pytest.raises(Exception, match=r".*"):
            await bad.connect()
        assert device.hub.counters["refused"] == 1
        for one in (good, bad):
            await one.shutdown()

"""IoT Hub directly with a client certificate: the right one delivers, a wrong one is a clear state."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from edge.cloud import iothub
from edge.cloud.iothub import IoTHub
from edge.message import unpack
from edge.outbox import NewRecord, Outbox
from edge.uplink import Uplink
from edge.uplink_settings import UplinkSettings
from tests.mosquitto import Authority
from tests.test_iothub import Edge, edge  # noqa: F401 (edge is a fixture)

PROMPT = UplinkSettings(latency_s=0, retry_min_s=0.01, retry_max_s=0.02, message_units=1)
RECORDS = 20


class Truck:
    """A device with a certificate of its own, and what may be wrong with it."""

    def __init__(self, folder: Path, device: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.edge = folder, device
        self.authority = Authority(folder, "fleet authority")
        device.hub.trust(self.authority.certificate)
        self.certificate, self.key = folder / "client.pem", folder / "client.key"
        device.hub.add_identity("truck/", os.urandom(32), thumbprints=[self.use(self.authority)])
        for name, value in {
            "IOTHUB_HOSTNAME": device.address,
            "IOTHUB_DEVICEID": "truck",
            "BORDNETZ_CERTIFICATE": str(self.certificate),
            "BORDNETZ_KEY": str(self.key),
            "BORDNETZ_CA": str(device.ca),
        }.items():
            monkeypatch.setenv(name, value)

    def use(self, authority: Authority, first_day: int = 0, last_day: int = 30) -> str:
        """Put a new certificate and its key in place; its thumbprint."""
        certificate, key = authority.issue("truck", first_day, last_day)
        shutil.move(certificate, self.certificate)
        shutil.move(key, self.key)
        made = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        return made.fingerprint(hashes.SHA256()).hex().upper()

    def renew(self) -> None:
        """As whoever looks after certificates does: a good one, and the hub knows it."""
        self.edge.hub.add_identity("truck/", os.urandom(32), thumbprints=[self.use(self.authority)])


@pytest.fixture
async def truck(edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Truck:  # noqa: F811
    folder = tmp_path / "certificates"
    folder.mkdir()
    monkeypatch.setattr(iothub, "CALL_SECONDS", 5.0)
    return Truck(folder, edge, monkeypatch)


@asynccontextmanager
async def uplink(tmp_path: Path) -> AsyncIterator[tuple[IoTHub, Outbox]]:
    """Records wait in an outbox; an uplink tries."""
    cloud = IoTHub(direct=True)
    cloud.retry_min_s, cloud.retry_max_s = 0.01, 0.02
    folder = tmp_path / "outbox"
    with Outbox(folder) as outbox, Outbox(folder) as collector, ThreadPoolExecutor(1) as executor:
        collector.append([NewRecord(5, "drive", bytes(32), os.urandom(3000)) for _ in range(RECORDS)])
        sender = Uplink(outbox, cloud, executor, cloud.vehicle, PROMPT, poll_seconds=0.005)
        tasks = [asyncio.create_task(cloud.run()), asyncio.create_task(sender.run())]
        try:
            async with asyncio.timeout(60):
                yield cloud, collector
                assert not any(task.done() for task in tasks)
        finally:
            for task in reversed(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await sender.finish(0)


def delivered(device: Edge) -> list[int]:
    return [record.sequence for body in device.bodies for record in unpack(body).records]


async def test_with_the_right_certificate_everything_is_delivered_and_the_twin_comes(truck, tmp_path):
    truck.edge.hub.patch_desired("truck/", {"a": 1})
    async with uplink(tmp_path) as (cloud, collector):
        twins = []
        cloud.on_twin = twins.append
        await truck.edge.until(lambda: not collector.stats().records)
        assert twins[0]["desired"]["a"] == 1
    assert delivered(truck.edge) == list(range(1, RECORDS + 1))
    assert {message["SystemProperties"]["connectionDeviceId"] for message in truck.edge.messages} == {"truck"}


def expired(truck: Truck) -> None:
    truck.edge.hub.add_identity("truck/", b"", thumbprints=[truck.use(truck.authority, -20, -10)])


def not_valid_yet(truck: Truck) -> None:
    truck.edge.hub.add_identity("truck/", b"", thumbprints=[truck.use(truck.authority, 10, 20)])


def of_another_authority(truck: Truck) -> None:
    truck.use(Authority(truck.folder, "stranger"))


def not_registered(truck: Truck) -> None:
    truck.use(truck.authority)


def without_its_key(truck: Truck) -> None:
    truck.key.write_bytes(truck.authority.issue("other")[1].read_bytes())


def cut_off(truck: Truck) -> None:
    truck.certificate.write_bytes(truck.certificate.read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (expired, "expired on"),
        (not_valid_yet, "is not valid before"),
        (of_another_authority, "refuse"),
        (not_registered, "refuse"),
        (without_its_key, "do not go together"),
        (cut_off, "is no certificate"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_wrong_certificate_is_a_state_that_names_it_and_a_new_one_is_taken_without_a_restart(
    truck, tmp_path, spoil: Callable[[Truck], None], said
):
    spoil(truck)
    async with uplink(tmp_path) as (cloud, collector):
        await truck.edge.until(lambda: cloud.counters["rebuilds"] >= 3)
        assert not cloud.connected
        assert (said in cloud.problem, str(truck.certificate) in cloud.problem) == (True, True), cloud.problem
        assert collector.stats().records == RECORDS
        truck.renew()
        await truck.edge.until(lambda: not collector.stats().records)
        assert cloud.problem == ""
    assert delivered(truck.edge) == list(range(1, RECORDS + 1))

"""A real broker for tests: Debian's mosquitto with TLS, its own authority, and certificates for clients."""

import asyncio
import datetime
import shutil
import socket
import ssl
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PROGRAM = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


class Authority:
    """Makes certificates; files are name.pem and name.key in its folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = folder / f"{name}.pem"
        extension = x509.BasicConstraints(ca=True, path_length=None)
        made = self._builder(self._name, self._key, 0, 30).add_extension(extension, critical=True)
        self._write(self.certificate, made.sign(self._key, hashes.SHA256()))

    def issue(self, name: str, first_day: int = 0, last_day: int = 30, host: str = "127.0.0.1") -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address(host))])
        made = self._builder(subject, key, first_day, last_day).add_extension(names, critical=False)
        certificate, file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        self._write(certificate, made.sign(self._key, hashes.SHA256()))
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        file.write_bytes(key.private_bytes(*form))
        return certificate, file

    def _builder(self, subject: x509.Name, key: Any, first_day: int, last_day: int) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=first_day))
            .not_valid_after(now + datetime.timedelta(days=last_day))
        )

    @staticmethod
    def _write(path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


class Broker:
    """Started, stopped and killed as often as a test likes; it keeps its port and what it has saved."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", prefix: Sequence[str] = (), plain: bool = False) -> None:
        """prefix: what runs the program, as `ip netns exec NAME` does. plain: without TLS, and open to all."""
        if PROGRAM is None:
            pytest.skip("needs mosquitto: apt-get install mosquitto")
        self.authority = Authority(folder)
        certificate, key = self.authority.issue("localhost", host=host)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._prefix = prefix
        self._config = folder / "mosquitto.conf"
        self._plain = plain
        tls = (
            f"cafile {self.authority.certificate}\ncertfile {certificate}\n"
            f"keyfile {key}\nrequire_certificate true\nuse_identity_as_username true\nallow_anonymous false\n"
        )
        self._config.write_text(
            f"listener {self.port} {host}\n{'allow_anonymous true' if plain else tls}\n"
            f"user root\npersistence true\npersistence_location {folder}/\nmax_queued_messages 0\n"
            "max_inflight_messages 100\n"
        )

    def launch(self) -> None:
        self._process = subprocess.Popen(
            [*self._prefix, str(PROGRAM), "-c", str(self._config)], stderr=subprocess.DEVNULL
        )

    async def start(self) -> None:
        self.launch()
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    return

    def stop(self, kill: bool = False) -> None:
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait()
            self._process = None

    def context(self, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return context

    def client(self, name: str, **more: Any) -> aiomqtt.Client:
        """For the cloud side of a test."""
        context = None if self._plain else self.context(*self.authority.issue(name))
        return aiomqtt.Client("localhost", self.port, identifier=name, tls_context=context, **more)

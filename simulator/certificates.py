"""A private CA for a state folder, and what it certifies: the hub's address, and modules that ask the workload API."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge.errors import InputError

LIFETIME = timedelta(days=3650)
DAY = timedelta(days=1)
PEM = serialization.Encoding.PEM
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class Authority:
    """The CA of a folder, made when it is not there: ca.pem to be trusted, ca.key for its owner alone.

    Raises InputError: what lies there cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file, key_file = folder / "ca.pem", folder / "ca.key"
        folder.mkdir(parents=True, exist_ok=True)
        if not (self.file.exists() and key_file.exists()):
            key, name = _new_key(), _name("Bordnetz simulator CA")
            made = _certificate(name, name, key, key, is_ca=True, ends=datetime.now(UTC) + LIFETIME)
            self.file.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(PEM))
            _write_secret(key_file, _pem(key))
        try:
            self._certificate = x509.load_pem_x509_certificate(self.file.read_bytes())
            self._key = _load_key(key_file.read_bytes())
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise damaged(folder, f"the CA cannot be read ({error})") from error

    def issue(
        self,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        ends: datetime,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> tuple[bytes, bytes]:
        """A certificate with its chain, and its key, both as PEM."""
        key = key or _new_key()
        made = (
            _certificate(_name(common_name), self._certificate.subject, key, self._key, is_ca=False, ends=ends)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(PEM) + self._certificate.public_bytes(PEM), _pem(key)


def make(folder: Path, address: str, names: list[str]) -> tuple[Path, Path, Path]:
    """Paths of the CA's certificate, the server's certificate with its chain, and the server's key.

    Made once for each address. Beside the second lies one of the same key that has expired: see expired().
    """
    authority = Authority(folder)
    paths = authority.file, folder / f"{address}.pem", folder / f"{address}.key"
    if not all(path.exists() for path in (*paths, expired(paths[1]))):
        key, now = _new_key(), datetime.now(UTC)
        for path, ends in ((paths[1], now + LIFETIME), (expired(paths[1]), now - DAY)):
            path.write_bytes(
                authority.issue(address, [general_name(one) for one in (address, *names)], SERVER, ends, key)[0]
            )
        _write_secret(paths[2], _pem(key))
    return paths


def damaged(folder: Path, what: str) -> InputError:
    return InputError(folder, what, "delete the folder: clients have to trust another CA then")


def expired(certificate: Path) -> Path:
    """Where the one lies that has expired."""
    return certificate.with_suffix(".expired.pem")


def general_name(text: str) -> x509.GeneralName:
    """As it stands in a certificate. Raises ValueError: it is neither an address nor the name of a host."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text.lower())


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is on no elliptic curve")
    return key


def _write_secret(path: Path, content: bytes) -> None:
    draft = path.with_suffix(".draft")
    draft.touch(mode=0o600)
    draft.write_bytes(content)
    draft.replace(path)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool,
    ends: datetime,
) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - 2 * DAY)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )

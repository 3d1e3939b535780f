"""A private CA and a server certificate for one loopback address, made once for each state folder."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=3650)
DAY = timedelta(days=1)


def make(folder: Path, address: str, names: list[str]) -> tuple[Path, Path, Path]:
    """Paths of the CA's certificate, the server's certificate with its chain, and the server's key.

    Beside the second lies one of the same key that has expired: see expired().
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "ca.pem", folder / f"{address}.pem", folder / f"{address}.key"
    if all(path.exists() for path in (*paths, expired(paths[1]))):
        return paths
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("Bordnetz simulator CA")
    ca = _certificate(ca_name, ca_name, ca_key, ca_key, is_ca=True).sign(ca_key, hashes.SHA256())
    sans = [x509.IPAddress(ipaddress.ip_address(address)), *(x509.DNSName(name) for name in names)]
    server, old = (
        _certificate(_name(address), ca_name, server_key, ca_key, is_ca=False, ends_in=ends_in)
        .add_extension(x509.SubjectAlternativeName(sans), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
        for ends_in in (LIFETIME, -DAY)
    )
    pem = serialization.Encoding.PEM
    key = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths[0].write_bytes(ca.public_bytes(pem))
    for path, certificate in ((paths[1], server), (expired(paths[1]), old)):
        path.write_bytes(certificate.public_bytes(pem) + ca.public_bytes(pem))
    draft = folder / "key.draft"
    draft.touch(mode=0o600)
    draft.write_bytes(key)
    draft.replace(paths[2])
    return paths


def expired(certificate: Path) -> Path:
    """Where the one lies that has expired."""
    return certificate.with_suffix(".expired.pem")


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool,
    ends_in: timedelta = LIFETIME,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
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
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + ends_in)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )

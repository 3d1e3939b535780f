"""Who a module is to IoT Hub, from its environment: a module of IoT Edge, or a device or module on its own."""

import os
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edge.errors import InputError

EDGE_ENVIRONMENT = (
    "IOTEDGE_IOTHUBHOSTNAME",
    "IOTEDGE_GATEWAYHOSTNAME",
    "IOTEDGE_DEVICEID",
    "IOTEDGE_MODULEID",
    "IOTEDGE_MODULEGENERATIONID",
    "IOTEDGE_WORKLOADURI",
    "IOTEDGE_APIVERSION",
)


class Identity(msgspec.Struct, frozen=True):
    """host: what it connects to. module is empty for a device; trusted: certificates to trust, PEM, or empty."""

    host: str
    device: str
    module: str = ""
    under_edge: bool = False
    connection_string: str = ""
    certificate: str = ""
    key: str = ""
    trusted: str = ""

    @property
    def has_token(self) -> bool:
        return not self.certificate

    @property
    def topic(self) -> str:
        module = f"/modules/{self.module}" if self.module else ""
        return f"devices/{self.device}{module}/messages/events/"


def edge_identity() -> Identity:
    """Raises InputError: IoT Edge did not start this process."""
    missing = [name for name in EDGE_ENVIRONMENT if not os.environ.get(name)]
    if missing:
        way_out = "start the module under IoT Edge or bordnetz simulate"
        raise InputError("environment", f"{', '.join(missing)} not set", way_out)
    names = (os.environ[f"IOTEDGE_{name}"] for name in ("GATEWAYHOSTNAME", "DEVICEID", "MODULEID"))
    host, device, module = names
    return Identity(host, device, module, under_edge=True)


def direct_identity() -> Identity:
    """edge/cloud/choose.py says what it reads. Raises InputError."""
    trusted = _file("BORDNETZ_CA") if os.environ.get("BORDNETZ_CA") else ""
    connection_string = os.environ.get("IOTHUB_CONNECTION_STRING", "")
    if connection_string:
        fields = dict(part.partition("=")[::2] for part in connection_string.split(";"))
        missing = [name for name in ("HostName", "DeviceId", "SharedAccessKey") if not fields.get(name)]
        if missing:
            way_out = "copy the whole connection string of the device or module"
            raise InputError("IOTHUB_CONNECTION_STRING", f"has no {', '.join(missing)}", way_out)
        host, device, module = fields["HostName"], fields["DeviceId"], fields.get("ModuleId", "")
        return Identity(host, device, module, connection_string=connection_string, trusted=trusted)
    for name in ("IOTHUB_HOSTNAME", "IOTHUB_DEVICEID"):
        if not os.environ.get(name):
            raise InputError(name, "is not set", "set it and a certificate, or IOTHUB_CONNECTION_STRING")
    _file("BORDNETZ_CERTIFICATE")
    _file("BORDNETZ_KEY")
    return Identity(
        os.environ["IOTHUB_HOSTNAME"],
        os.environ["IOTHUB_DEVICEID"],
        os.environ.get("IOTHUB_MODULEID", ""),
        certificate=os.environ["BORDNETZ_CERTIFICATE"],
        key=os.environ["BORDNETZ_KEY"],
        trusted=trusted,
    )


def _file(name: str) -> str:
    """What is in the file that a variable names."""
    path = os.environ.get(name)
    if not path:
        raise InputError(name, "is not set", "name a PEM file")
    try:
        return Path(path).read_text()
    except (OSError, ValueError) as error:
        raise InputError(f"{name} {path}", f"cannot be read ({error})", "name a PEM file") from error


def certificate_state(certificate: str, key: str) -> str:
    """For who wonders why there is no connection: what is wrong with a certificate, or that the hub may refuse it."""
    if not certificate:
        return "no certificate was shown; if the other end asks for one, set BORDNETZ_CERTIFICATE and BORDNETZ_KEY"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key or None)
        found = ssl._ssl._test_decode_cert(certificate)  # type: ignore[attr-defined]
        begins, ends = (ssl.cert_time_to_seconds(found[name]) for name in ("notBefore", "notAfter"))
    except ssl.SSLError as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            return f"certificate {certificate} and key {key} do not go together"
        return f"{certificate} is no certificate, or {key} no key, in PEM ({error})"
    except (OSError, ValueError, AttributeError, KeyError) as error:
        return f"certificate {certificate}, key {key}: cannot be read ({error})"
    for what, when, is_so in (
        ("expired on", ends, ends < time.time()),
        ("is not valid before", begins, begins > time.time()),
    ):
        if is_so:
            return f"certificate {certificate} {what} {datetime.fromtimestamp(when, UTC):%Y-%m-%d}, by this clock"
    names = [" ".join(value for part in found.get(who, ()) for _, value in part) for who in ("subject", "issuer")]
    return f"the other end may refuse certificate {certificate}: of {names[0]!r}, issued by {names[1]!r}, in date"

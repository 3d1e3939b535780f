"""Which cloud a module talks to, from its environment.

| BORDNETZ_CLOUD | cloud | needs |
|---|---|---|
| not set | IoT Hub through IoT Edge's hub | what IoT Edge sets |
| `iothub` | IoT Hub directly | IOTHUB_CONNECTION_STRING; or IOTHUB_HOSTNAME, IOTHUB_DEVICEID and a certificate |
| `mqtts://host[:port]` | an MQTT broker over TLS | BORDNETZ_VEHICLE; a certificate where the broker asks for one |

A certificate is BORDNETZ_CERTIFICATE and BORDNETZ_KEY (PEM files); BORDNETZ_CA names the certificates to trust
instead of the system's.
"""

import os
from typing import Any, Protocol

from edge.cloud import Cloud
from edge.errors import InputError


class ModuleCloud(Cloud, Protocol):
    """A cloud side as a module's main uses it. problem: why there is no connection, or nothing."""

    vehicle: str
    problem: str
    counters: Any
    retry_min_s: float
    retry_max_s: float

    @property
    def connected(self) -> bool: ...


def choose_cloud(module: str) -> ModuleCloud:
    """Raises InputError: something is missing, or does not fit together."""
    cloud = os.environ.get("BORDNETZ_CLOUD", "")
    if cloud.startswith("mqtts://"):
        from edge.cloud.mqtt import Mqtt

        return Mqtt.from_environment(cloud, module)
    from edge.cloud.iothub import IoTHub

    if cloud not in ("", "iothub"):
        raise InputError("BORDNETZ_CLOUD", f"{cloud[:60]!r} names no cloud", "give iothub or mqtts://host, or nothing")
    return IoTHub(direct=cloud == "iothub")

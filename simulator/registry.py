"""IoT Hub's identity registry: devices and modules, their keys, certificates and etags, in registry.json.

The simulated device and the modules of its deployment are in it from the beginning; what the service API adds can
connect to the hub as they do.
"""

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import InputError
from simulator.http import BadRequest
from simulator.hub import Hub
from simulator.twin import NEVER

MOST_MODULES = 50
ID = re.compile(r"[A-Za-z0-9\-:.+%_#*?!(),=@$']{1,128}")


class ServiceError(BadRequest):
    """code: IoT Hub's name of the error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.code = code
        super().__init__(status, message)


class _State(msgspec.Struct):
    identities: dict[str, dict[str, Any]] = {}
    configurations: dict[str, dict[str, Any]] = {}


class Registry:
    """Raises InputError: registry.json cannot be read."""

    def __init__(self, hub: Hub, path: Path) -> None:
        self._hub = hub
        self._path = path
        state = _read(path)
        self.configurations = state.configurations
        self._records = state.identities
        for identity, record in self._records.items():
            try:
                self._admit(identity, record)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise _no_registry(path, f"{identity}: {error!r}") from error

    def identities(self, device: str | None = None) -> Iterator[str]:
        """All devices; or the modules of one. Raises ServiceError: there is no such device."""
        self._take_over()
        if device is not None:
            self.find(device, "")
        for identity in sorted(self._records):
            owner, module = self._hub.identities.names_of(identity)
            if (not module) if device is None else (module and owner == device):
                yield identity

    def all_modules(self) -> Iterator[str]:
        self._take_over()
        yield from sorted(identity for identity in self._records if self._hub.identities.names_of(identity)[1])

    def find(self, device: str, module: str) -> str:
        """The identity. Raises ServiceError: there is none."""
        self._take_over()
        identity = self._hub.identities.of(device, module)
        if self._hub.identities.of(device, "") not in self._records:
            raise ServiceError(404, "DeviceNotFound", f"device {device} is not registered")
        if identity not in self._records:
            raise ServiceError(404, "ModuleNotFound", f"module {module} of device {device} is not registered")
        return identity

    def document(self, identity: str) -> dict[str, Any]:
        """As the service API gives it."""
        device, module = self._hub.identities.names_of(identity)
        record = self._records[identity]
        state = "Connected" if self._hub.is_connected(identity) else "Disconnected"
        common = {
            "deviceId": device,
            "generationId": record["generationId"],
            "etag": record["etag"],
            "connectionState": state,
            "connectionStateUpdatedTime": NEVER,
            "lastActivityTime": NEVER,
            "cloudToDeviceMessageCount": 0,
            "authentication": record["authentication"],
        }
        if module:
            return {**common, "moduleId": module, "managedBy": record.get("managedBy", "")}
        status = {"status": record["status"], "statusReason": record.get("statusReason", "")}
        return {**common, **status, "statusUpdatedTime": NEVER, "capabilities": record["capabilities"]}

    def twin_document(self, identity: str) -> dict[str, Any]:
        device, module = self._hub.identities.names_of(identity)
        record = self._records[identity]
        thumbprints = record["authentication"]["x509Thumbprint"]
        return {
            "deviceId": device,
            **({"moduleId": module} if module else {}),
            **self._hub.twin(identity).service_document(),
            "deviceEtag": record["etag"],
            "status": record["status"],
            "statusUpdateTime": NEVER,
            "connectionState": "Connected" if self._hub.is_connected(identity) else "Disconnected",
            "lastActivityTime": NEVER,
            "cloudToDeviceMessageCount": 0,
            "authenticationType": record["authentication"]["type"],
            "x509Thumbprint": thumbprints,
            **({} if module else {"capabilities": record["capabilities"]}),
        }

    def put(self, device: str, module: str, wanted: dict[str, Any], if_match: str | None) -> dict[str, Any]:
        """Create (without if_match) or update. Raises ServiceError."""
        if not ID.fullmatch(device) or (module and not ID.fullmatch(module)):
            raise ServiceError(400, "ArgumentInvalid", "an id has up to 128 letters, digits and -:.+%_#*?!(),=@$'")
        if module:
            self.find(device, "")
        self._take_over()
        identity = self._hub.identities.of(device, module)
        old = self._records.get(identity)
        what = "Module" if module else "Device"
        if old is None and if_match is not None:
            raise ServiceError(404, f"{what}NotFound", f"{device}/{module}".strip("/") + " is not registered")
        if old is not None and if_match is None:
            code = "ModuleAlreadyExistsOnDevice" if module else "DeviceAlreadyExists"
            raise ServiceError(409, code, f"{device}/{module}".strip("/") + " is registered already")
        if old is not None:
            check_etag(if_match, old["etag"])
        if module and old is None and len(list(self.identities(device))) >= MOST_MODULES:
            raise ServiceError(400, "TooManyModulesOnDevice", f"a device has {MOST_MODULES} modules at most")
        record = _record(wanted, old)
        self._records[identity] = record
        self._admit(identity, record)
        self.keep()
        return self.document(identity)

    def delete(self, device: str, module: str, if_match: str | None) -> None:
        """Raises ServiceError."""
        identity = self.find(device, module)
        if if_match is not None:
            check_etag(if_match, self._records[identity]["etag"])
        if device == self._hub.device and (not module or self._records[identity].get("managedBy") == "IotEdge"):
            raise ServiceError(400, "InvalidOperation", "the simulated device and its deployment's modules stay")
        for gone in [identity] if module else [identity, *list(self.identities(device))]:
            del self._records[gone]
            self._hub.remove_identity(gone)
        self.keep()

    def keep(self) -> None:
        draft = self._path.with_suffix(".draft")
        draft.touch(mode=0o600)
        # Not by msgspec: text from the service API may hold halves of characters.
        draft.write_text(json.dumps({"identities": self._records, "configurations": self.configurations}))
        draft.replace(self._path)

    def _take_over(self) -> None:
        """What a deployment has added or taken away since."""
        known = self._hub.identities.keys
        for identity, key in known.items():
            if identity not in self._records:
                managed = {"managedBy": "IotEdge", "capabilities": {"iotEdge": True}}
                self._records[identity] = {**_record({"authentication": _sas(key)}, None), **managed}
        for identity in [one for one, record in self._records.items() if record.get("managedBy") == "IotEdge"]:
            if identity not in known:
                del self._records[identity]

    def _admit(self, identity: str, record: dict[str, Any]) -> None:
        if record.get("managedBy") == "IotEdge" and identity not in self._hub.identities.keys:
            return  # of a deployment that is no longer
        if record["status"] == "disabled":
            self._hub.bar(identity)
            return
        keys = record["authentication"]["symmetricKey"]
        first, second = (base64.b64decode(keys[name] or "") for name in ("primaryKey", "secondaryKey"))
        thumbprints = {str(text).upper() for text in record["authentication"]["x509Thumbprint"].values() if text}
        self._hub.add_identity(identity, first or os.urandom(32), second, thumbprints)


def check_etag(if_match: str | None, etag: str) -> None:
    """Raises ServiceError."""
    if if_match is not None and if_match.strip('"') not in ("*", etag):
        raise ServiceError(412, "PreconditionFailed", f"the etag is {etag}, not {if_match}")


def _record(wanted: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
    authentication = _part(wanted, "authentication")
    kind = authentication.get("type") or "sas"
    if kind not in ("sas", "selfSigned"):
        raise ServiceError(400, "ArgumentInvalid", f"authentication of type {kind}; known are sas and selfSigned")
    if (wanted.get("status") or "enabled") not in ("enabled", "disabled"):
        raise ServiceError(400, "ArgumentInvalid", "status is enabled or disabled")
    keys = _part(authentication, "symmetricKey")
    before = old["authentication"]["symmetricKey"] if old else {}
    symmetric = {}
    for name in ("primaryKey", "secondaryKey"):
        symmetric[name] = keys.get(name) or before.get(name) or base64.b64encode(os.urandom(32)).decode()
        try:
            base64.b64decode(symmetric[name], validate=True)
        except (ValueError, TypeError) as error:
            raise ServiceError(400, "ArgumentInvalid", f"{name} is not base64") from error
    prints = _part(authentication, "x509Thumbprint")
    return {
        "generationId": old["generationId"] if old else str(int.from_bytes(os.urandom(7), "big")),
        "etag": base64.b64encode(os.urandom(6)).decode(),
        "status": wanted.get("status") or "enabled",
        "statusReason": wanted.get("statusReason") or "",
        "managedBy": wanted.get("managedBy") or (old or {}).get("managedBy", ""),
        "capabilities": _part(wanted, "capabilities") or {"iotEdge": False},
        "authentication": {
            "type": kind,
            "symmetricKey": symmetric if kind == "sas" else {"primaryKey": None, "secondaryKey": None},
            "x509Thumbprint": {name: prints.get(name) for name in ("primaryThumbprint", "secondaryThumbprint")},
        },
    }


def _part(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name) or {}
    if not isinstance(value, dict):
        raise ServiceError(400, "ArgumentInvalid", f"{name} is no JSON object")
    return value


def _sas(key: bytes) -> dict[str, Any]:
    text = base64.b64encode(key).decode()
    return {"type": "sas", "symmetricKey": {"primaryKey": text, "secondaryKey": text}}


def _read(path: Path) -> _State:
    try:
        return msgspec.convert(json.loads(path.read_text()), _State)
    except FileNotFoundError:
        return _State()
    except (OSError, ValueError) as error:
        raise _no_registry(path, str(error)) from error


def _no_registry(path: Path, why: str) -> InputError:
    return InputError(path, f"is no registry ({why})", "delete it: added identities are gone then")

"""IoT Hub's service REST API, as much of it as the service SDK azure-iot-hub uses for devices in the field.

    /devices  /devices/{d}  /devices/{d}/modules[/{m}]                identities, with etags
    /twins/{d}[/modules/{m}]                                          get, update, replace, with etags
    /twins/{d}[/modules/{m}]/methods                                  direct methods, also from module to module
    /devices/{d}/applyConfigurationContent  /configurations[/{id}]    deployments
    /devices/query  /statistics/…                                     SELECT * FROM devices WHERE tags.x = 'y'

Served over TLS on port 443 to who has the service key, or a module's token for methods on its own device; and on the
control socket of the state folder, to who may open it.
"""

import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from edge.errors import InputError
from simulator import layers
from simulator.deployment import check_manifest
from simulator.http import Answer, BadRequest, Request
from simulator.hub import Hub, NoAnswer
from simulator.registry import Registry, ServiceError, check_etag
from simulator.sas import BadToken, check_token
from simulator.twin import Rejected

POLICY = "iothubowner"
MOST_SECONDS, LEAST_SECONDS = 300, 5
MOST_CONFIGURATIONS = 100


class Device(Protocol):
    """What a deployment is for."""

    @property
    def hub(self) -> Hub: ...

    async def deploy(self, manifest: dict[str, Any]) -> None: ...


class Service:
    """key: of the policy iothubowner."""

    def __init__(self, device: Device, registry: Registry, key: bytes) -> None:
        self._device = device
        self._hub = device.hub
        self._registry = registry
        self._key = key

    async def answer_outside(self, request: Request) -> Answer:
        """What comes over the network has to say who it is."""
        if "x-ms-edge-moduleid" in request.headers:
            return await self._answer_module(request)
        try:
            hosts, now = (self._hub.name, self._hub.address), self._hub.clock.now()
            check_token(request.headers.get("authorization", ""), hosts, "", self._key, now)
        except BadToken as error:
            return _refusal(ServiceError(401, "IotHubUnauthorizedAccess", str(error)))
        return await self.answer(request)

    async def answer(self, request: Request) -> Answer:
        try:
            return await self._answer(request)
        except ServiceError as error:
            return _refusal(error)
        except BadRequest as error:
            return _refusal(ServiceError(error.status, "ArgumentInvalid", str(error)))
        except Rejected as error:
            return _refusal(ServiceError(400, "ArgumentInvalid", str(error)))
        except NoAnswer as error:
            code = "DeviceNotOnline" if error.status == 404 else "GatewayTimeout"
            return _refusal(ServiceError(error.status, code, str(error)))

    async def _answer_module(self, request: Request) -> Answer:
        """edgeHub's method endpoint, for modules of this device. Its errors are {"message": …}."""
        device, _, module = request.headers["x-ms-edge-moduleid"].partition("/")
        if device != self._hub.device or module not in self._hub.identities.keys:
            raise BadRequest(401, "there is no such module")
        try:
            self._hub.identities.check_token(request.headers.get("authorization", ""), module)
        except BadToken as error:
            raise BadRequest(401, str(error)) from error
        try:
            match request.method, request.parts:
                case "POST", ("twins", target, "modules", name, "methods") if target == self._hub.device:
                    return await self._call(target, name, request)
                case "POST", ("twins", target, "methods") if target == self._hub.device:
                    return await self._call(target, "", request)
        except NoAnswer as error:
            raise BadRequest(error.status, str(error)) from error
        raise BadRequest(404, "a module may call methods on its own device, and nothing else")

    async def _answer(self, request: Request) -> Answer:
        if_match = request.headers.get("if-match")
        match request.method, request.parts:
            case "GET", ("devices",):
                names = list(self._registry.identities())[: _top(request, 1000)]
                return Answer(200, [self._registry.document(name) for name in names])
            case "POST", ("devices", "query"):
                return self._query(request)
            case "POST", ("devices", device, "applyConfigurationContent"):
                await self._apply(device, _object(request.json()))
                return Answer(204)
            case "GET", ("devices", device, "modules"):
                return Answer(200, [self._registry.document(name) for name in self._registry.identities(device)])
            case "GET", ("devices", device, *rest) if _is_module(rest):
                return _with_etag(self._registry.document(self._registry.find(device, _module(rest))))
            case "PUT", ("devices", device, *rest) if _is_module(rest):
                document = self._registry.put(device, _module(rest), _object(request.json()), if_match)
                return _with_etag(document)
            case "DELETE", ("devices", device, *rest) if _is_module(rest):
                self._registry.delete(device, _module(rest), if_match)
                return Answer(204)
            case "POST", ("twins", device, *rest, "methods") if _is_module(rest):
                if self._hub.router.is_cut and device == self._hub.device:
                    raise NoAnswer(404, "the device's upstream is cut")
                return await self._call(device, _module(rest), request)
            case "GET" | "PATCH" | "PUT", ("twins", device, *rest) if _is_module(rest):
                return await self._twin(request, self._registry.find(device, _module(rest)))
            case _, ("configurations", *rest):
                return await self._configuration(request, rest)
            case "GET", ("statistics", "devices"):
                count = len(list(self._registry.identities()))
                return Answer(200, {"totalDeviceCount": count, "enabledDeviceCount": count, "disabledDeviceCount": 0})
            case "GET", ("statistics", "service"):
                connected = sum(self._hub.is_connected(name) for name in self._registry.identities())
                return Answer(200, {"connectedDeviceCount": connected})
        raise ServiceError(404, "NotFound", f"no such request: {request.method} /{'/'.join(request.parts)}")

    async def _twin(self, request: Request, identity: str) -> Answer:
        if request.method != "GET":
            body = _object(request.json())
            check_etag(request.headers.get("if-match"), self._hub.twin(identity).etag)
            self._change_twin(identity, body, merge=request.method == "PATCH")
            if "tags" in body or request.method == "PUT":
                await self._deploy_automatically()
        return _with_etag(self._registry.twin_document(identity))

    def _change_twin(self, identity: str, body: dict[str, Any], *, merge: bool) -> None:
        properties = _object(body.get("properties") or {})
        # Both parts are looked at before either is changed: a request is done whole, or not at all.
        trial = copy.deepcopy(self._hub.twin(identity))
        tags, desired = body.get("tags"), properties.get("desired")
        if tags is not None or not merge:
            trial.set_tags(tags or {}, merge=merge)
        if desired is not None:
            (trial.patch_desired if merge else trial.replace_desired)(desired)
            (self._hub.patch_desired if merge else self._hub.replace_desired)(identity, desired)
        if tags is not None or not merge:
            self._hub.set_tags(identity, tags or {}, merge=merge)

    async def _call(self, device: str, module: str, request: Request) -> Answer:
        identity = self._registry.find(device, module)
        body = _object(request.json())
        seconds = _seconds(body, "responseTimeoutInSeconds", LEAST_SECONDS, 30)
        connect = _seconds(body, "connectTimeoutInSeconds", 0, 0)
        name = body.get("methodName")
        if not isinstance(name, str) or not name:
            raise ServiceError(400, "ArgumentInvalid", "methodName is missing")
        try:
            status, payload = await self._hub.call(identity, name, body.get("payload"), seconds, connect)
        except ValueError as error:
            raise ServiceError(400, "ArgumentInvalid", str(error)) from error
        return Answer(200, {"status": status, "payload": payload})

    def _query(self, request: Request) -> Answer:
        query = str(_object(request.json()).get("query", ""))
        try:
            of_modules, condition = layers.split_query(query)
            names = self._registry.all_modules() if of_modules else self._registry.identities()
            documents = [self._registry.twin_document(name) for name in names]
            found = [document for document in documents if layers.matches(condition, document)]
        except ValueError as error:
            raise ServiceError(400, "ArgumentInvalid", str(error)) from error
        return Answer(200, found, {"x-ms-item-type": "Twin"})

    async def _apply(self, device: str, content: dict[str, Any]) -> None:
        identity = self._registry.find(device, "")
        modules = _object(content.get("modulesContent") or {})
        if identity == "":
            await self._deploy({"modulesContent": modules})
            return
        for name, sections in modules.items():
            known = list(self._registry.identities(device))
            if self._hub.identities.of(device, name) not in known:
                self._registry.put(device, name, {"managedBy": "IotEdge"} if name.startswith("$") else {}, None)
            desired = _object(_object(sections).get("properties.desired", {}))
            self._hub.replace_desired(self._registry.find(device, name), desired)

    async def _deploy(self, manifest: dict[str, Any]) -> None:
        """What edgeAgent would refuse later is refused here: the finding comes back at once."""
        try:
            if findings := check_manifest(manifest, Path("content")):
                raise ServiceError(400, "InvalidConfigurationContent", "; ".join(findings[:5]))
            await self._device.deploy(manifest)
        except InputError as error:
            raise ServiceError(400, "InvalidConfigurationContent", str(error)) from error

    async def _configuration(self, request: Request, rest: list[str]) -> Answer:
        known, if_match = self._registry.configurations, request.headers.get("if-match")
        match request.method, rest:
            case "GET", []:
                return Answer(200, [self._counted(one) for one in list(known.values())[: _top(request, 100)]])
            case "POST", ["testQueries"]:
                _check_target(_object(request.json()).get("targetCondition", ""))
                return Answer(200, {"targetConditionError": "", "customMetricQueryErrors": {}})
            case "GET", [name] if name in known:
                return _with_etag(self._counted(known[name]))
            case "DELETE", [name] if name in known:
                check_etag(if_match, known[name]["etag"])
                del known[name]
            case "PUT", [name]:
                known[name] = self._configured(name, _object(request.json()), known.get(name), if_match)
            case _:
                raise ServiceError(404, "ConfigurationNotFound", f"there is no configuration {'/'.join(rest)}")
        self._registry.keep()
        await self._deploy_automatically()
        return Answer(204) if request.method == "DELETE" else _with_etag(self._counted(known[rest[0]]))

    def _configured(
        self, name: str, wanted: dict[str, Any], old: dict[str, Any] | None, if_match: str | None
    ) -> dict[str, Any]:
        if old is not None and if_match is None:
            raise ServiceError(409, "ConfigurationAlreadyExists", f"there is a configuration {name}")
        if old is not None:
            check_etag(if_match, old["etag"])
        if old is None and len(self._registry.configurations) == MOST_CONFIGURATIONS:
            raise ServiceError(400, "ConfigurationCountExceeded", f"{MOST_CONFIGURATIONS} at most")
        content = _object(wanted.get("content") or (old or {}).get("content") or {})
        if not content.get("modulesContent") or not isinstance(content["modulesContent"], dict):
            raise ServiceError(400, "InvalidConfigurationContent", "only modulesContent is understood")
        _check_target(wanted.get("targetCondition") or "")
        priority = wanted.get("priority") or 0
        if not isinstance(priority, int):
            raise ServiceError(400, "ArgumentInvalid", "priority is a whole number")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "id": name,
            "schemaVersion": "1.0",
            "labels": wanted.get("labels") or {},
            "content": {"modulesContent": content["modulesContent"]},
            "targetCondition": str(wanted.get("targetCondition") or ""),
            "priority": priority,
            "createdTimeUtc": old["createdTimeUtc"] if old else now,
            "lastUpdatedTimeUtc": now,
            "etag": str(int(old["etag"]) + 1) if old else "1",
        }

    def _counted(self, configuration: dict[str, Any]) -> dict[str, Any]:
        twins = [self._registry.twin_document(name) for name in self._registry.identities()]
        count = sum(layers.matches(configuration["targetCondition"], twin) for twin in twins)
        metrics = {"results": {"targetedCount": count}, "queries": {}}
        return {**configuration, "systemMetrics": metrics, "metrics": {"results": {}, "queries": {}}}

    async def _deploy_automatically(self) -> None:
        """Give the simulated device what its configurations say, if any is for it."""
        twin = self._registry.twin_document(self._registry.find(self._hub.device, ""))
        targeting = [
            one for one in self._registry.configurations.values() if layers.matches(one["targetCondition"], twin)
        ]
        manifest = layers.combine(targeting)
        if manifest is not None:
            await self._deploy(manifest)


def _check_target(condition: object) -> None:
    try:
        layers.matches(str(condition), {})
    except ValueError as error:
        raise ServiceError(400, "ArgumentInvalid", f"targetCondition: {error}") from error


def _top(request: Request, default: int) -> int:
    text = request.query.get("top", "")
    return int(text) if text.isdecimal() and len(text) < 10 else default


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ServiceError(400, "ArgumentInvalid", "the body, or a part of it, is no JSON object")
    return value


def _seconds(body: dict[str, Any], name: str, least: int, default: int) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= MOST_SECONDS:
        raise ServiceError(400, "ArgumentInvalid", f"{name} is {least} to {MOST_SECONDS}")
    return value


def _is_module(rest: list[str]) -> bool:
    return rest == [] or (len(rest) == 2 and rest[0] == "modules" and bool(rest[1]))


def _module(rest: list[str]) -> str:
    return rest[1] if rest else ""


def _with_etag(document: dict[str, Any]) -> Answer:
    return Answer(200, document, {"ETag": f'"{document["etag"]}"'})


def _refusal(error: ServiceError) -> Answer:
    document = {"Message": f"ErrorCode:{error.code};{error}", "ExceptionMessage": ""}
    return Answer(error.status, document, {"iothub-errorcode": error.code})

"""Deployment templates and manifests: what IoT Edge, or the way there, would refuse.

    template ──expand──► manifest ──check──► findings: `file: JSON path: problem; way out`

Rules: the IoT Edge deployment schemas (agent 1.0 and 1.1, hub 1.0 to 1.3), edgeAgent's own parsing, the limits of
twins. Whatever a document holds, check ends with findings, not with a crash.
"""

import json
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edge.errors import InputError
from simulator import binds, routes
from simulator.routes import is_integer
from simulator.template import (
    AGENT,
    DESIRED,
    PLATFORM,
    all_modules,
    create_options,
    expand,
    module_of_image,
    modules_content,
    object_of,
    read_json,
    try_expand,
)
from simulator.twin import Rejected
from simulator.twin import check as check_twin

__all__ = ["check", "create_options", "expand", "module_of_image", "modules_content", "read_json"]

MODULE_NAME = re.compile(r"[A-Za-z0-9_-]+")
ENUMERATIONS = {
    "type": ("docker",),
    "status": ("running", "stopped"),
    "restartPolicy": ("never", "on-failure", "on-unhealthy", "always"),
    "imagePullPolicy": ("on-create", "never"),
}
AGENT_VERSIONS = ("1.0", "1.1")
HUB_VERSIONS = ("1.0", "1.1", "1.2", "1.3")
HUB = "modulesContent.$edgeHub"
# What each part may hold. Others are left to IoT Edge, but for those that are nearly one of these.
AGENT_NAMES = ("schemaVersion", "runtime", "systemModules", "modules")
MODULE_NAMES = (*ENUMERATIONS, "settings", "env", "startupOrder", "version")
SETTINGS_NAMES = ("image", "createOptions", *(f"createOptions{number:02}" for number in range(1, 100)))
HUB_NAMES = ("schemaVersion", "routes", "storeAndForwardConfiguration", "mqttBroker", "integrity")
STORAGE_NAMES = ("timeToLiveSecs", "storeLimits")
ROUTE_NAMES = ("route", "priority", "timeToLiveSecs")
SYSTEM_MODULES = {"edgeAgent", "edgeHub"}
MOST_MODULES = 50  # of a deployment


def check(path: Path, env: Mapping[str, str] | None = None, platform: str = PLATFORM) -> list[str]:
    """Findings, one line each. env and platform as in expand. Raises InputError: it cannot be read at all."""
    manifest, problems = try_expand(path, env, platform)
    findings = [*map(str, problems), *check_manifest(manifest, path), *_check_dockerfiles(path.parent)]
    return list(dict.fromkeys(findings))


def check_manifest(manifest: dict[str, Any], path: Path) -> list[str]:
    """Findings about a manifest that is expanded already; path: what they call it."""
    findings = _Findings(path)
    content = modules_content(manifest, path)
    is_layered = any(key.startswith(f"{DESIRED}.") for owner in content for key in object_of(content, owner))
    _check_owners(findings, content, is_layered)
    modules = set()
    for place, module in all_modules(content):
        if ".systemModules." not in place:
            modules.add(place.rpartition(".")[2])
        _check_module(findings, place, module)
    _check_agent(findings, object_of(object_of(content, "$edgeAgent"), DESIRED))
    # A layered deployment also speaks of modules that are in the one below it.
    known = None if is_layered else modules
    _check_hub(findings, object_of(content, "$edgeHub"), known)
    _check_twins(findings, content, known)
    _check_leftovers(findings, manifest, "")
    return findings


class _Findings(list[str]):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def add(self, place: str, problem: str, way_out: str) -> None:
        self.append(f"{self._path}: {place}: {problem}; {way_out}")

    def names(self, parent: Mapping[str, Any], known: Collection[str], place: str) -> None:
        """A finding for each name that is nearly a known one."""
        for name in sorted(parent.keys() - set(known)):
            if near := get_close_matches(name, known, 1, cutoff=0.8):
                self.add(f"{place}.{name}", "is not known", f"did you mean {near[0]}?")

    def objects(self, parent: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
        """parent[key]; where it is no object, a finding and an empty one."""
        if not isinstance(parent.get(key, {}), dict):
            self.add(f"{place}.{key}", "is no object", "write { … }")
        return object_of(parent, key)


def _check_owners(findings: _Findings, content: dict[str, Any], is_layered: bool) -> None:
    for owner in content:
        for key in findings.objects(content, owner, "modulesContent"):
            if key != DESIRED and not key.startswith(f"{DESIRED}."):
                findings.add(f"modulesContent.{owner}.{key}", "is not known", f"write {DESIRED}")
            elif key == DESIRED:
                findings.objects(content[owner], key, f"modulesContent.{owner}")
    for owner in () if is_layered else ("$edgeAgent", "$edgeHub"):
        if owner not in content:
            findings.add("modulesContent", f"there is no {owner}", "every deployment but a layered one has it")


def _check_agent(findings: _Findings, desired: dict[str, Any]) -> None:
    if not desired:
        return
    place = f"{AGENT}.{DESIRED}"
    findings.names(desired, AGENT_NAMES, place)
    _check_choice(findings, f"{place}.schemaVersion", desired.get("schemaVersion"), AGENT_VERSIONS)
    runtime = findings.objects(desired, "runtime", place)
    _check_choice(findings, f"{place}.runtime.type", runtime.get("type"), ENUMERATIONS["type"])
    system = findings.objects(desired, "systemModules", place)
    for name in sorted(SYSTEM_MODULES - system.keys()):
        findings.add(f"{place}.systemModules", f"there is no {name}", "every deployment but a layered one has it")
    for name in sorted(system.keys() - SYSTEM_MODULES):
        findings.add(f"{place}.systemModules.{name}", "is no system module", "move it to modules")
    modules = findings.objects(desired, "modules", place)
    for name in sorted(SYSTEM_MODULES & modules.keys()):
        findings.add(f"{place}.modules.{name}", "a system module has this name", "take another")
    if len(modules) > MOST_MODULES:
        findings.add(f"{place}.modules", f"{len(modules)} modules; {MOST_MODULES} are allowed", "leave some away")
    if desired.get("schemaVersion") == "1.0" and any("startupOrder" in object_of(modules, name) for name in modules):
        findings.add(f"{place}.schemaVersion", "startupOrder needs 1.1", "write 1.1")


def _check_module(findings: _Findings, place: str, module: Any) -> None:
    if not isinstance(module, dict):
        findings.add(place, "is no object", "write { … }")
        return
    name = place.rpartition(".")[2]
    findings.names(module, MODULE_NAMES, place)
    required = {"type", "settings", "status", "restartPolicy"}
    if place.endswith(".systemModules.edgeAgent"):
        required = {"type", "settings"}
        for key in sorted(module.keys() & {"status", "restartPolicy", "startupOrder"}):
            findings.add(f"{place}.{key}", "edgeAgent has none", "leave it away")
    if not MODULE_NAME.fullmatch(name):
        findings.add(place, f"{name!r} is no module name", "take letters, digits, _ and -")
    for key in sorted(required - module.keys()):
        findings.add(place, f"{key} is missing", f"add it, one of {', '.join(ENUMERATIONS.get(key, ('{ … }',)))}")
    for key in sorted(ENUMERATIONS.keys() & module.keys()):
        _check_choice(findings, f"{place}.{key}", module[key], ENUMERATIONS[key])
    if module.get("restartPolicy") in ("on-failure", "on-unhealthy"):
        findings.add(f"{place}.restartPolicy", f"IoT Edge does not implement {module['restartPolicy']}", "take always")
    if not is_integer(module.get("startupOrder", 0), 0, (1 << 32) - 1):
        findings.add(f"{place}.startupOrder", f"{module['startupOrder']!r} is no order", "take 0 to 4294967295")
    _check_settings(findings, f"{place}.settings", findings.objects(module, "settings", place))
    for variable, entry in findings.objects(module, "env", place).items():
        value = entry.get("value") if isinstance(entry, dict) and len(entry) == 1 else None
        if not variable or "=" in variable or not isinstance(value, str | int | float):
            findings.add(f"{place}.env.{variable}", "is no setting", '"NAME": {"value": text, number, true or false}')


def _check_settings(findings: _Findings, place: str, settings: dict[str, Any]) -> None:
    findings.names(settings, SETTINGS_NAMES, place)
    if not isinstance(settings.get("image"), str) or not settings["image"].strip():
        findings.add(f"{place}.image", "is missing", "name an image, or ${MODULES.name}")
    try:
        options = create_options(settings)
    except (ValueError, RecursionError) as error:
        findings.add(f"{place}.createOptions", f"is no JSON object ({error})", "see Docker's API for containers")
        return
    host = findings.objects(options, "HostConfig", f"{place}.createOptions")
    _check_binds(findings, f"{place}.createOptions.HostConfig.Binds", host.get("Binds") or [])
    endpoints = object_of(object_of(options, "NetworkingConfig"), "EndpointsConfig")
    if host.get("NetworkMode") == "host" and "host" not in endpoints:
        findings.add(
            f"{place}.createOptions",
            "NetworkMode host alone: edgeAgent also attaches its own network",
            'add "NetworkingConfig": {"EndpointsConfig": {"host": {}}}',
        )


def _check_binds(findings: _Findings, place: str, value: Any) -> None:
    if not isinstance(value, list):
        findings.add(place, f"{value!r} is no list", 'write ["host:/container"]')
        return
    for bind in value:
        try:
            binds.parse(bind)
        except ValueError as error:
            findings.add(place, str(error), "host:/container[:options]")


def _check_hub(findings: _Findings, hub: dict[str, Any], modules: Collection[str] | None) -> None:
    desired, place = object_of(hub, DESIRED), f"{HUB}.{DESIRED}"
    version = desired.get("schemaVersion")
    findings.names(desired, HUB_NAMES, place)
    if desired:
        _check_choice(findings, f"{place}.schemaVersion", version, HUB_VERSIONS)
    for name, route in findings.objects(desired, "routes", place).items():
        _check_route(findings, f"{place}.routes.{name}", route, modules)
        if version == "1.0" and isinstance(route, dict):
            findings.add(f"{place}.routes.{name}", "a route as an object needs schemaVersion 1.1", "write 1.1")
    for key, route in hub.items():
        if key.startswith(f"{DESIRED}.routes."):  # of a layered deployment
            _check_route(findings, f"{HUB}.{key}", route, modules)
    storage = findings.objects(desired, "storeAndForwardConfiguration", place)
    findings.names(storage, STORAGE_NAMES, f"{place}.storeAndForwardConfiguration")
    if not is_integer(storage.get("timeToLiveSecs", 0), -(1 << 31), (1 << 31) - 1):
        findings.add(f"{place}.storeAndForwardConfiguration.timeToLiveSecs", "is no time", "take whole seconds")


def _check_route(findings: _Findings, place: str, route: Any, modules: Collection[str] | None) -> None:
    findings.names(route if isinstance(route, dict) else {}, ROUTE_NAMES, place)
    for where, problem, way_out in routes.definition_problems(route, modules):
        findings.add(f"{place}{where}", problem, way_out)


def _check_twins(findings: _Findings, content: dict[str, Any], modules: Collection[str] | None) -> None:
    for owner in content:
        if modules is not None and not owner.startswith("$") and owner not in modules:
            findings.add(f"modulesContent.{owner}", "the deployment has no such module", "deploy it, or delete this")
        for key, section in object_of(content, owner).items():
            try:
                check_twin(section if isinstance(section, dict) else {"value": section})
            except Rejected as error:
                findings.add(f"modulesContent.{owner}.{key}", str(error), "make it what a twin can hold")


def _check_leftovers(findings: _Findings, value: Any, place: str) -> None:
    """A placeholder that nothing has filled in: names of keys are not expanded, and some are misspelt."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if "${" in key:
                findings.add(f"{place}.{key}".lstrip("."), "a placeholder in a name", "write the name itself")
            _check_leftovers(findings, entry, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            _check_leftovers(findings, entry, f"{place}[{i}]")
    elif isinstance(value, str) and re.search(r"\$\{[^{}]*(\$|$)", value):
        findings.add(place, "a placeholder without its }", "close it")


def _check_dockerfiles(root: Path) -> list[str]:
    findings = []
    for file in sorted(root.glob("modules/*/module.json")):
        try:
            image = object_of(read_json(file), "image")
        except InputError as error:
            findings.append(str(error))
            continue
        tag = object_of(image, "tag")
        for key, owner in (("repository", image), ("version", tag)):
            if not isinstance(owner.get(key), str) or not owner[key]:
                findings.append(f"{file}: image: {key} is missing; add it")
        if not object_of(tag, "platforms"):
            findings.append(f"{file}: image: platforms is missing; add it")
        for platform, dockerfile in object_of(tag, "platforms").items():
            if not isinstance(dockerfile, str) or not (file.parent / dockerfile).is_file():
                findings.append(f"{file}: image.tag.platforms.{platform}: there is no {dockerfile}; add or correct it")
    return findings


def _check_choice(findings: _Findings, place: str, value: object, allowed: Collection[str]) -> None:
    if value not in allowed:
        found = "is missing" if value is None else f"{json.dumps(value)[:60]} is not allowed"
        findings.add(place, found, f"take {' or '.join(allowed)}")

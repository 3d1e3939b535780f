"""Deployment templates and manifests: expand them like the official tools, and find what IoT Edge would refuse.

    deployment.template.json ──expand──► manifest: variables and images filled in, createOptions as strings in chunks

Rules: the IoT Edge deployment schemas, and edgeAgent's own parsing. Unlike the official tools, an image that no
module.json gives is an error here, not something to find out on the vehicle.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge.errors import InputError
from simulator.twin import SECTION_BYTES, Rejected
from simulator.twin import check as check_twin

CHUNK_CHARACTERS = 512
MOST_CHUNKS = 8
PLATFORM = "amd64"
KEPT_WORDS = ("edgeAgent", "edgeHub", "upstream", "schema-template")
PLACEHOLDER = re.compile(r"\$(?:\{([A-Za-z_][\w.<>/-]*)\}|([A-Za-z_]\w*))")
MODULE_NAME = re.compile(r"^[A-Za-z0-9_-]+$")
ROUTE = re.compile(
    r"^\s*(?:SELECT\s+\*\s+)?FROM\s+(?P<source>/\S*)(?:\s+WHERE\s+(?P<condition>.+?))?\s+INTO\s+(?P<sink>\S.*?)\s*$",
    re.IGNORECASE | re.DOTALL,
)
SOURCE = re.compile(
    r"^/(\*|twinChangeNotifications(/\*)?|messages(/\*|/modules(/\*|/[\w-]+(/\*|/outputs(/\*|/[\w.-]+(/\*)?)?)?)?)?)$",
    re.IGNORECASE,
)
ENDPOINT = re.compile(r'^BrokeredEndpoint\("/modules/([\w-]+)/inputs/[\w.-]+"\)$', re.IGNORECASE)
ENUMERATIONS = {
    "type": ("docker",),
    "status": ("running", "stopped"),
    "restartPolicy": ("never", "on-failure", "on-unhealthy", "always"),
    "imagePullPolicy": ("on-create", "never"),
}


# -- expanding ---------------------------------------------------------------------------------------------------


def expand(path: Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The manifest of a template; env replaces the environment (and .env beside the template).

    Raises InputError: not JSON, an undefined variable or ${MODULES.x}, createOptions over their limit.
    """
    template = read_json(path)
    variables = {**_dotenv(path.parent / ".env"), **(os.environ if env is None else env)}
    images = module_images(path.parent, variables)
    template.pop("$schema-template", None)
    expanded: dict[str, Any] = _expand(template, path, "", variables, images)
    for place, module in _all_modules(modules_content(expanded, path)):
        settings = module.get("settings", {})
        if "createOptions" in settings:
            _chunk_create_options(settings, f"{path}: {place}.settings.createOptions")
    return expanded


def read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            path, f"cannot be read ({error.strerror})", "give a deployment template or manifest"
        ) from error
    except ValueError as error:
        raise InputError(path, f"is not JSON ({error})", "correct it there") from error
    if not isinstance(document, dict):
        raise InputError(path, "is not a JSON object", "give a deployment template or manifest")
    return document


def modules_content(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Raises InputError where there is none."""
    content = document.get("modulesContent", document.get("content", {}).get("modulesContent"))
    if not isinstance(content, dict):
        raise InputError(path, "has no modulesContent", "give a deployment template or manifest")
    return content


def module_images(root: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """`MODULES.name`, with platform and `.debug` or without, to image name, from modules/*/module.json.

    Raises InputError: a module.json that is not JSON, or names an undefined variable.
    """
    images: dict[str, str] = {}
    for file in sorted(root.glob("modules/*/module.json")):
        image = _expand(read_json(file).get("image", {}), file, "image", variables, {})
        tag = image.get("tag", {})
        for platform in tag.get("platforms", {}):
            name = f"{image.get('repository')}:{tag.get('version')}-{platform}"
            images[f"MODULES.{file.parent.name}.{platform}"] = name
            if platform in (PLATFORM, f"{PLATFORM}.debug"):
                images[f"MODULES.{file.parent.name}{platform.removeprefix(PLATFORM)}"] = name
    return images


def module_of_image(root: Path, image: str) -> str | None:
    """The folder under modules/ whose module.json names this image, whatever registry it is in."""
    for file in sorted(root.glob("modules/*/module.json")):
        repository = str(read_json(file).get("image", {}).get("repository"))
        if image.rpartition(":")[0].rpartition("/")[2] == repository.rpartition("/")[2]:
            return file.parent.name
    return None


def _expand(value: Any, path: Path, place: str, variables: Mapping[str, str], images: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            name: _expand(entry, path, f"{place}.{name}".lstrip("."), variables, images)
            for name, entry in value.items()
        }
    if isinstance(value, list):
        return [_expand(entry, path, f"{place}[{i}]", variables, images) for i, entry in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name in variables:
            return variables[name]
        if name in KEPT_WORDS:
            return match[0]
        if name.startswith("MODULEDIR<"):
            return str((path.parent / name[len("MODULEDIR<") :].rstrip(">")).resolve())
        if name in images:
            return images[name]
        if name.startswith("MODULES."):
            known = ", ".join(sorted({key.split(".")[1] for key in images})) or "none"
            raise InputError(f"{path}: {place}", f"{match[0]} is no module", f"modules with a module.json: {known}")
        raise InputError(f"{path}: {place}", f"{match[0]} is not defined", "set it in the environment or in .env")

    return PLACEHOLDER.sub(replaced, value)


def _chunk_create_options(settings: dict[str, Any], place: str) -> None:
    options = settings["createOptions"]
    text = options if isinstance(options, str) else json.dumps(options, separators=(",", ":"))
    chunks = [text[i : i + CHUNK_CHARACTERS] for i in range(0, len(text), CHUNK_CHARACTERS)] or [""]
    if len(chunks) > MOST_CHUNKS:
        raise InputError(place, f"{len(text)} characters; {MOST_CHUNKS * CHUNK_CHARACTERS} are allowed", "shorten them")
    settings["createOptions"] = chunks[0]
    for number, chunk in enumerate(chunks[1:], start=1):
        settings[f"createOptions{number:02}"] = chunk


def create_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """createOptions put together from their chunks. Raises ValueError: not a JSON object."""
    first = settings.get("createOptions", "")
    if isinstance(first, dict):
        return first
    names = sorted(name for name in settings if re.fullmatch(r"createOptions\d\d", name))
    options = json.loads(first + "".join(settings[name] for name in names) or "{}")
    if not isinstance(options, dict):
        raise ValueError("not a JSON object")
    return options


def _dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


# -- checking ----------------------------------------------------------------------------------------------------


def check(path: Path, env: Mapping[str, str] | None = None) -> list[str]:
    """Findings, one line each: `file: place: problem; way out`. Raises InputError: it cannot be read at all."""
    document = read_json(path)
    modules_content(document, path)
    try:
        document = expand(path, env)
    except InputError as error:
        return [str(error)]
    return [f"{path}: {finding}" for finding in _findings(modules_content(document, path), path.parent)]


def _findings(content: dict[str, Any], root: Path) -> Iterator[str]:
    for owner in ("$edgeAgent", "$edgeHub"):
        if owner not in content and not any(name.startswith("properties.desired") for name in content.get(owner, {})):
            yield f"modulesContent: there is no {owner}; every deployment but a layered one has it"
    modules = {name for name, _ in _named_modules(content)}
    for place, module in _all_modules(content):
        yield from _module_findings(place, module)
    yield from _agent_findings(content.get("$edgeAgent", {}).get("properties.desired", {}))
    yield from _hub_findings(content.get("$edgeHub", {}).get("properties.desired", {}), modules)
    for owner, twin in content.items():
        yield from _twin_findings(owner, twin, modules)
    yield from _module_json_findings(root)


def _named_modules(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    desired = content.get("$edgeAgent", {}).get("properties.desired", {})
    yield from desired.get("modules", {}).items()
    for name, module in content.get("$edgeAgent", {}).items():
        if name.startswith("properties.desired.modules."):  # of a layered deployment
            yield name.removeprefix("properties.desired.modules."), module


def _all_modules(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    desired = content.get("$edgeAgent", {}).get("properties.desired", {})
    for name, module in desired.get("systemModules", {}).items():
        yield f"$edgeAgent.systemModules.{name}", module
    for name, module in _named_modules(content):
        yield f"$edgeAgent.modules.{name}", module


def _module_findings(place: str, module: dict[str, Any]) -> Iterator[str]:
    name = place.rpartition(".")[2]
    is_system = ".systemModules." in place
    if not MODULE_NAME.match(name):
        yield f"{place}: is no module name; letters, digits, _ and - are"
    required = (
        {"type", "settings"} if name == "edgeAgent" and is_system else {"type", "settings", "status", "restartPolicy"}
    )
    for key in sorted(required - module.keys()):
        yield f"{place}: {key} is missing; {_choices(key)}"
    for key, allowed in ENUMERATIONS.items():
        if key in module and module[key] not in allowed:
            yield f"{place}.{key}: {module[key]!r} is not allowed; {_choices(key)}"
    if module.get("restartPolicy") in ("on-failure", "on-unhealthy"):
        yield f"{place}.restartPolicy: {module['restartPolicy']} is not implemented by IoT Edge; take always"
    order = module.get("startupOrder", 0)
    if not isinstance(order, int) or isinstance(order, bool) or not 0 <= order < 1 << 32:
        yield f"{place}.startupOrder: {order!r} is no number from 0 to 4294967295"
    settings = module.get("settings", {})
    if not settings.get("image"):
        yield f"{place}.settings.image: is missing; name an image, or ${{MODULES.name}}"
    try:
        create_options(settings)
    except ValueError as error:
        yield f"{place}.settings.createOptions: is not a JSON object ({error})"
    for variable, entry in module.get("env", {}).items():
        value = entry.get("value") if isinstance(entry, dict) else None
        if not isinstance(value, str | int | float):
            yield f'{place}.env.{variable}: is not {{"value": text, number or true/false}}'


def _choices(key: str) -> str:
    return f"one of {', '.join(ENUMERATIONS[key])}" if key in ENUMERATIONS else "it is required"


def _agent_findings(desired: dict[str, Any]) -> Iterator[str]:
    version = desired.get("schemaVersion")
    if desired and version not in ("1.0", "1.1"):
        yield f"$edgeAgent.schemaVersion: {version!r}; edgeAgent takes 1.0 and 1.1"
    if version == "1.0" and any("startupOrder" in module for module in desired.get("modules", {}).values()):
        yield "$edgeAgent.schemaVersion: startupOrder needs 1.1"


def _hub_findings(desired: dict[str, Any], modules: set[str]) -> Iterator[str]:
    version = desired.get("schemaVersion")
    if desired and version not in ("1.0", "1.1", "1.2", "1.3"):
        yield f"$edgeHub.schemaVersion: {version!r}; edgeHub takes 1.0 to 1.3"
    for name, route in desired.get("routes", {}).items():
        place = f"$edgeHub.routes.{name}"
        if isinstance(route, dict):
            if version == "1.0":
                yield f"{place}: a route with priority or timeToLiveSecs needs schemaVersion 1.1"
            if not 0 <= route.get("priority", 0) <= 9:
                yield f"{place}.priority: {route['priority']} is not in 0 to 9"
            route = route.get("route", "")
        yield from _route_findings(place, str(route), modules)
    seconds = desired.get("storeAndForwardConfiguration", {}).get("timeToLiveSecs", 0)
    if not isinstance(seconds, int):
        yield f"$edgeHub.storeAndForwardConfiguration.timeToLiveSecs: {seconds!r} is no whole number"


def _route_findings(place: str, route: str, modules: set[str]) -> Iterator[str]:
    match = ROUTE.match(route)
    if not match:
        yield f"{place}: is no route; FROM <source> [WHERE <condition>] INTO <sink>"
        return
    if not SOURCE.match(match["source"]):
        yield f"{place}: {match['source']} is no source; for example /messages/modules/NAME/outputs/*"
    named = re.match(r"/messages/modules/([\w-]+)", match["source"])
    endpoint = ENDPOINT.match(match["sink"])
    if match["sink"].lower() != "$upstream" and not endpoint:
        yield f'{place}: {match["sink"]} is no sink; $upstream or BrokeredEndpoint("/modules/NAME/inputs/INPUT")'
    for module in filter(None, (named and named[1], endpoint and endpoint[1])):
        if module not in modules:
            yield f"{place}: there is no module {module}; there are {', '.join(sorted(modules)) or 'none'}"


def _twin_findings(owner: str, twin: dict[str, Any], modules: set[str]) -> Iterator[str]:
    if not owner.startswith("$") and owner not in modules:
        yield f"{owner}: there are properties for a module that is not deployed"
    desired = twin.get("properties.desired", {})
    size = len(json.dumps(desired, separators=(",", ":")).encode())
    if owner.startswith("$"):
        if size > SECTION_BYTES:
            yield f"{owner}: the desired section has {size} bytes; {SECTION_BYTES} are allowed"
        return
    try:
        check_twin(desired)
    except Rejected as error:
        yield f"{owner}.properties.desired: {error}"


def _module_json_findings(root: Path) -> Iterator[str]:
    for file in sorted(root.glob("modules/*/module.json")):
        image = read_json(file).get("image", {})
        for platform, dockerfile in image.get("tag", {}).get("platforms", {}).items():
            if not (file.parent / dockerfile).is_file():
                yield f"{file.relative_to(root)}: {platform}: there is no {dockerfile}"

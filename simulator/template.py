"""Deployment templates: read them, and expand them as the official tools (iotedgedev 3.3) do.

    deployment.template.json ──expand──► manifest: variables and images filled in, createOptions as strings in chunks

Unlike the official tools, a variable that is not defined or an image that no module.json gives is an error here, not
something to find out on the vehicle. Only conditions of routes may name `$body` or a system property.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge.errors import InputError
from simulator import strict

CHUNK_CHARACTERS = 512
MOST_CHUNKS = 8
PLATFORM = "amd64"
KEPT_WORDS = ("edgeAgent", "edgeHub", "upstream")
PLACEHOLDER = re.compile(r"\$(?:\{([^${}]*)\}|([A-Za-z_]\w*))")
IMAGE = re.compile(r"(?P<base>MODULES\.(?P<module>[\w-]+)|MODULEDIR<(?P<folder>[^<>]+)>)(?P<platform>(\.\w+)*)")
DESIRED = "properties.desired"
AGENT = "modulesContent.$edgeAgent"


def expand(path: Path, env: Mapping[str, str] | None = None, platform: str = PLATFORM) -> dict[str, Any]:
    """The manifest of a template. env replaces the environment, which goes before the .env beside the template.

    platform: whose images `${MODULES.name}` means.

    Raises InputError: not JSON, an undefined variable or ${MODULES.x}, createOptions over their limit.
    """
    manifest, problems = try_expand(path, env, platform)
    if problems:
        raise problems[0]
    return manifest


def try_expand(
    path: Path, env: Mapping[str, str] | None = None, platform: str = PLATFORM
) -> tuple[dict[str, Any], list[InputError]]:
    """As far as it goes, with all that does not. Raises InputError: it is no template at all."""
    template = read_json(path)
    modules_content(template, path)
    template.pop("$schema-template", None)
    variables = {**_dotenv(path.parent / ".env"), **(os.environ if env is None else env)}
    expansion = _Expansion(path.parent, variables, platform)
    try:
        manifest: dict[str, Any] = expansion.expand(template, path, "")
    except RecursionError as error:
        raise InputError(path, "is nested too deeply", "no deployment needs that") from error
    for place, module in all_modules(modules_content(manifest, path)):
        settings = object_of(module, "settings")
        if "createOptions" in settings:
            _chunk_create_options(settings, f"{path}: {place}.settings.createOptions", expansion.problems)
    return manifest, expansion.problems


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError, also where a name stands twice in an object: other readers would take the other one."""
    try:
        text = path.read_text(encoding="utf-8")
        document = strict.loads(text, _once)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "give a template or manifest") from error
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"is not JSON ({error})", "correct it there") from error
    if not isinstance(document, dict):
        raise InputError(path, "is not a JSON object", "give a template or manifest")
    return document


def modules_content(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Raises InputError where there is none."""
    outer = document if "modulesContent" in document else document.get("content")
    content = object_of(outer, "modulesContent")
    if not content:
        raise InputError(path, "has no modulesContent", "give a deployment template or manifest")
    return content


def all_modules(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """JSON path and definition of each module: system modules, modules, and modules of a layered deployment."""
    agent = object_of(content, "$edgeAgent")
    for group in ("systemModules", "modules"):
        for name, module in object_of(object_of(agent, DESIRED), group).items():
            yield f"{AGENT}.{DESIRED}.{group}.{name}", module
    for key, module in agent.items():
        if key.startswith(f"{DESIRED}.modules."):
            yield f"{AGENT}.{key}", module


def create_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """createOptions put together from their chunks. Raises ValueError: not a JSON object."""
    first = settings.get("createOptions", "")
    options = first if isinstance(first, dict) else json.loads(_joined(settings) or "{}")
    if not isinstance(options, dict):
        raise ValueError("not a JSON object")
    return options


def module_of_image(root: Path, image: str) -> str | None:
    """The folder under modules/ whose module.json names this image, whatever registry it is in."""
    for file in sorted(root.glob("modules/*/module.json")):
        repository = object_of(read_json(file), "image").get("repository")
        if isinstance(repository, str) and _image_name(image) == _image_name(repository) != "":
            return file.parent.name
    return None


def _image_name(image: str) -> str:
    """`registry:5000/team/name:tag@digest` to `name`."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0].lower()


class _Expansion:
    """Fills in placeholders below one folder, and keeps what it could not fill in."""

    def __init__(self, root: Path, variables: Mapping[str, str], platform: str) -> None:
        self.problems: list[InputError] = []
        self._root = root
        self._variables = variables
        self._platform = platform
        self._images: dict[Path, dict[str, str]] = {}

    def expand(self, value: Any, file: Path, place: str) -> Any:
        if isinstance(value, dict):
            return {name: self.expand(entry, file, f"{place}.{name}".lstrip(".")) for name, entry in value.items()}
        if isinstance(value, list):
            return [self.expand(entry, file, f"{place}[{i}]") for i, entry in enumerate(value)]
        if isinstance(value, str):
            return PLACEHOLDER.sub(lambda match: self._replacement(match, file, place), value)
        return value

    def _replacement(self, match: re.Match[str], file: Path, place: str) -> str:
        braced, bare = match.groups()
        name = bare or braced
        if name in self._variables:
            return self._variables[name]
        if bare and (bare in KEPT_WORDS or ".routes." in place):
            return match[0]
        image = IMAGE.fullmatch(name)
        if not image:
            self._problem(file, place, f"{match[0]} is not defined", "set it in the environment or in .env")
            return match[0]
        folder = self._root / (image["folder"] or f"modules/{image['module']}")
        images = self._images_of(folder)
        if image["platform"] not in images:
            known = ", ".join(f"{image['base']}{platform}" for platform in images) or "none"
            what = f"{match[0]} is no image" if image["platform"] else f"{match[0]} is no image for {self._platform}"
            self._problem(file, place, what, f"{folder / 'module.json'} gives {known}")
        return images.get(image["platform"], match[0])

    def _images_of(self, folder: Path) -> dict[str, str]:
        """Image by `.platform`; also without it for the default platform."""
        if folder not in self._images:
            self._images[folder] = images = {}
            file = folder / "module.json"
            image = self.expand(self._image_section(file), file, "image")
            for platform in object_of(object_of(image, "tag"), "platforms"):
                name = f"{str(image.get('repository')).lower()}:{image['tag'].get('version')}-{platform}"
                images[f".{platform}"] = name
                if platform in (self._platform, f"{self._platform}.debug"):
                    images[platform.removeprefix(self._platform)] = name
        return self._images[folder]

    def _image_section(self, file: Path) -> dict[str, Any]:
        try:
            return object_of(read_json(file), "image") if file.is_file() else {}
        except InputError as error:
            self.problems.append(error)
            return {}

    def _problem(self, file: Path, place: str, problem: str, way_out: str) -> None:
        self.problems.append(InputError(f"{file}: {place}", problem, way_out))


def object_of(parent: Any, key: str) -> dict[str, Any]:
    """parent[key] where both are objects; else an empty one."""
    value = parent.get(key) if isinstance(parent, dict) else None
    return value if isinstance(value, dict) else {}


def _joined(settings: Mapping[str, Any]) -> str:
    chunks = [settings[name] for name in sorted(settings) if re.fullmatch(r"createOptions(\d\d)?", name)]
    if not all(isinstance(chunk, str) for chunk in chunks):
        raise ValueError("a chunk that is no string")
    return "".join(chunks)


def _chunk_create_options(settings: dict[str, Any], place: str, problems: list[InputError]) -> None:
    options = settings["createOptions"]
    try:
        text = json.dumps(options, separators=(",", ":")) if isinstance(options, dict) else _joined(settings)
    except ValueError as error:
        problems.append(InputError(place, f"is no JSON object ({error})", "give an object, or strings in chunks"))
        return
    chunks = [text[i : i + CHUNK_CHARACTERS] for i in range(0, len(text), CHUNK_CHARACTERS)] or [""]
    if len(chunks) > MOST_CHUNKS:
        problems.append(
            InputError(place, f"{len(text)} characters; {MOST_CHUNKS * CHUNK_CHARACTERS} are allowed", "shorten them")
        )
    for name in [name for name in settings if re.fullmatch(r"createOptions\d\d", name)]:
        del settings[name]
    settings["createOptions"] = chunks[0]
    for number, chunk in enumerate(chunks[1:], start=1):
        settings[f"createOptions{number:02}"] = chunk


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"{name} stands there twice")
        made[name] = value
    return made


def _dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read ({error})", "write NAME=VALUE lines, in UTF-8") from error
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}

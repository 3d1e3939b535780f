"""A module's settings, taken from its twin, and its state, reported there.

    desired ──► update ──► settings (a msgspec struct), piece by piece ──► settings-<module>.json
                  │             a bad piece is refused, its last good value goes on
    reported ◄── run ◄── report(patch), report(patch), …: merged, one patch at a time, not more often than allowed

A piece is a field of the struct, or one entry of a field that is a dictionary: a bad campaign does not hold up
the others. Identical documents change nothing. The last good settings are on disk beside the outbox, and hold
after a restart without network. Reported: {"settings": {"hash", "version", "refused": {"path": "reason"}}},
where the path is `field` or `field/entry` (twins do not allow dots in names).
"""

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin

import msgspec

from edge.cloud import Cloud
from edge.durable import write_durably
from edge.errors import CloudError, EdgeError, MessageRejected
from edge.typed import explain

log = logging.getLogger(__name__)

MAX_REFUSED = 32
MAX_REASON_CHARACTERS = 300
MIN_REPORT_SECONDS, MAX_REPORT_SECONDS = 1.0, 60.0

S = TypeVar("S", bound=msgspec.Struct)
Expanded = tuple[dict[str, Any], str, dict[str, str]]


class Kept(msgspec.Struct):
    """What is on disk: the settings in force, and where they came from.

    hash: of desired; added: what names that which expand has put in.
    """

    hash: str = ""
    added: str = ""
    desired: dict[str, Any] = {}
    version: int | None = None
    settings: dict[str, Any] = {}
    refused: dict[str, str] = {}


class Twin(Generic[S]):
    """Settings of one module.

    kind: the struct, all of whose fields have defaults. check(field, entry, value) may refuse a piece that the
    types alone let pass: raise EdgeError or ValueError with the reason; entry is None for a whole field.
    on_change(settings) is called after every change, and not for the settings that were there at the start.
    expand(desired) may put in what a document refers to: it gives the document, what names that which is in it now, and
    what is refused; refresh() has it asked again.
    """

    def __init__(
        self,
        kind: type[S],
        path: Path,
        check: Callable[[str, str | None, Any], None] = lambda field, entry, value: None,
        on_change: Callable[[S], None] = lambda settings: None,
        expand: Callable[[dict[str, Any]], Expanded] = lambda desired: (desired, "", {}),
    ) -> None:
        self._kind = kind
        self._path = path
        self._check = check
        self.on_change = on_change
        self._expand = expand
        self._kept = _load(path)
        refused: dict[str, str] = {}
        self.settings: S = self._read(self._kept.settings, kind(), refused)
        for where, reason in refused.items():
            log.warning("%s: kept setting %s is not valid any more: %s", path, where, reason)
        self._pending: dict[str, Any] = {}
        self._wake = asyncio.Event()

    @property
    def state(self) -> dict[str, Any]:
        """What is reported about the settings."""
        return {"hash": self._kept.hash, "version": self._kept.version, "refused": dict(self._kept.refused)}

    def update(self, document: dict[str, Any]) -> None:
        """Take the whole twin, {"desired": {...}, "reported": {...}}, as it came; nonsense changes nothing."""
        section = _part(document, "desired")
        if section is None:
            log.warning("the hub gave a twin without desired properties: the settings stay as they are")
            return
        desired = {name: value for name, value in section.items() if not name.startswith("$")}
        version = section.get("$version")
        self._take(desired, version if isinstance(version, int) else None)
        self._report_settings(_part(document, "reported") or {})

    def refresh(self) -> None:
        """What expand makes of the document may be something else now."""
        before = self.state
        if not self._kept.desired:  # none has come yet
            return
        self._take(self._kept.desired, self._kept.version)
        if self.state != before:
            self._report_settings({"settings": before})

    def _take(self, desired: dict[str, Any], version: int | None) -> None:
        digest = hashlib.sha256(msgspec.json.encode(desired, order="deterministic")).hexdigest()[:16]
        expanded, added, refused = self._expand(desired)
        is_same = all(self._kept.refused.get(where) == reason for where, reason in refused.items())
        if (digest, added) != (self._kept.hash, self._kept.added) or not is_same:
            self._kept.desired, self._kept.added = desired, added
            self._change(expanded, digest, version, refused)
        elif version != self._kept.version:
            self._kept.version = version
            _save(self._path, self._kept)

    def _change(self, desired: dict[str, Any], digest: str, version: int | None, refused: dict[str, str]) -> None:
        before = self.settings
        self.settings = self._read(desired, before, refused)
        for where, reason in refused.items():
            log.warning("setting %s refused: %s", where, reason)
        kept = msgspec.to_builtins(self.settings)
        shown = dict(list(refused.items())[:MAX_REFUSED])
        self._kept = Kept(digest, self._kept.added, self._kept.desired, version, kept, shown)
        _save(self._path, self._kept)
        if self.settings != before:
            log.info("settings %s, version %s", digest, version)
            self.on_change(self.settings)

    def _read(self, desired: dict[str, Any], last: S, refused: dict[str, str]) -> S:
        """The settings in a document; what is not in it has its default."""
        pieces: dict[str, Any] = {}
        fields = {field.encode_name: field for field in msgspec.structs.fields(self._kind)}
        for name, value in desired.items():
            if name not in fields:
                _refuse(refused, name, f"there is no such setting; there are: {', '.join(fields)}")
            elif get_origin(fields[name].type) is dict and isinstance(value, dict):
                old = getattr(last, fields[name].name)
                pieces[fields[name].name] = self._read_entries(name, fields[name].type, value, old, refused)
            elif value is not None:
                old = getattr(last, fields[name].name)
                pieces[fields[name].name] = self._piece(name, None, fields[name].type, value, old, refused)
        try:
            return self._kind(**pieces)
        except ValueError as error:  # from __post_init__: pieces that do not go together
            _refuse(refused, "all", str(error))
            return last

    def _read_entries(
        self, field: str, kind: Any, value: dict[str, Any], last: dict[str, Any], refused: dict[str, str]
    ) -> dict[str, Any]:
        entries = {}
        for name, entry in value.items():
            if entry is not None:
                found = self._piece(field, name, get_args(kind)[1], entry, last.get(name), refused)
                if found is not None:
                    entries[name] = found
        return entries

    def _piece(self, field: str, entry: str | None, kind: Any, value: Any, last: Any, refused: dict[str, str]) -> Any:
        try:
            piece = msgspec.convert(value, kind)
            self._check(field, entry, piece)
            return piece
        except (msgspec.ValidationError, EdgeError, ValueError) as error:
            reason = explain(error, kind) if isinstance(error, msgspec.ValidationError) else str(error)
            _refuse(refused, field if entry is None else f"{field}/{entry}", reason)
            return last

    # Reporting

    def _report_settings(self, reported: dict[str, Any]) -> None:
        """Report the settings if the cloud does not know them so; entries that went are deleted by null."""
        known = _part(reported, "settings") or {}
        if known != self.state:
            stale = dict.fromkeys(_part(known, "refused") or {}, None)
            self.report({"settings": {**self.state, "refused": {**stale, **self._kept.refused}}})

    def report(self, patch: dict[str, Any]) -> None:
        """Have run merge a patch into the reported properties; later values replace earlier ones."""
        _merge(self._pending, patch)
        self._wake.set()

    async def run(self, cloud: Cloud) -> None:
        """Send what is to be reported, one patch at a time, until cancelled; after a refusal less and less often."""
        delay = MIN_REPORT_SECONDS
        while True:
            await self._wake.wait()
            await cloud.wait_connected()
            self._wake.clear()
            patch, self._pending = self._pending, {}
            try:
                await cloud.report(patch)
                delay = MIN_REPORT_SECONDS
            except MessageRejected as error:
                log.warning("the cloud does not take the reported properties: %s", error)
            except CloudError as error:
                log.debug("not reported yet: %s", error)
                self._pending = _merge(patch, self._pending)
                self._wake.set()
                delay = min(2 * delay, MAX_REPORT_SECONDS)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0) if delay > MIN_REPORT_SECONDS else delay)


def _part(document: Any, name: str) -> dict[str, Any] | None:
    """An object in an object, if it is one."""
    part = document.get(name) if isinstance(document, dict) else None
    return part if isinstance(part, dict) else None


def _refuse(refused: dict[str, str], where: str, reason: str) -> None:
    refused[re.sub(r"[.$#\s\x00-\x1f]", "_", where)[:200]] = reason[:MAX_REASON_CHARACTERS]


def _merge(into: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value
    return into


def _load(path: Path) -> Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s: the kept settings cannot be read, taking defaults: %s", path, error)
        return Kept()


def _save(path: Path, kept: Kept) -> None:
    """A full disk costs the copy, not the settings."""
    try:
        write_durably(path, [msgspec.json.encode(kept)])
    except OSError as error:
        log.warning("%s: settings not kept: %s", path, error)


def merge_patch(section: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A new section with a JSON merge patch (RFC 7396) in it: null deletes."""
    merged = dict(section)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            old = merged.get(name)
            merged[name] = merge_patch(old if isinstance(old, dict) else {}, value)
        else:
            merged[name] = value
    return merged

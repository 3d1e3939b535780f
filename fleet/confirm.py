"""What the table has, said to the vehicles: into the twins of their uplinks. The only file that imports azure-iot-hub.

    <table>/vehicle=…/_received ──► a Confirmation for each outbox ──► twin: properties.desired.confirmed

Confirmed is what a segment holds, which is durable before it counts. A vehicle whose ledger explains a gap is believed
only where that is certain: an eviction says how many records of a range went, not which, so that only ranges that went
as a whole are; what is not certain is called a gap, which makes a vehicle keep a record, and not lose one.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from edge.confirmation import Confirmation, names_of
from edge.errors import CloudUnreachable, InputError, MessageRejected
from edge.message import Eviction
from fleet.archive import Archive
from fleet.folder import TABLE_FILE, vehicles
from fleet.ranges import Range, Ranges

VARIABLE = "IOTHUB_SERVICE_CONNECTION_STRING"
MOST_OUTBOXES = 3  # of a vehicle, the newest: a twin's section has room for that many
DAMAGED_COPIES = 2  # a record that came damaged twice is damaged in the vehicle: a third copy would not help
TRIES = 5
BUSY = (429, 500, 502, 503, 504)

Twin = Mapping[str, Any]


class Twins(Protocol):
    """Where twins are."""

    def desired(self, vehicle: str, module: str) -> Twin | None:
        """The desired properties, with "reported" and "$version"; None: there is no such module."""

    def patch(self, vehicle: str, module: str, desired: Twin) -> None:
        """Merge into the desired properties. Both raise MessageRejected: of this vehicle."""


class Confirmed(NamedTuple):
    """What became of one vehicle. records: that are confirmed now; gaps: sequences that are not; patch: of its desired
    properties, if anything differs; problem: or nothing."""

    vehicle: str
    asks: bool = True
    records: int = 0
    gaps: int = 0
    patch: Mapping[str, Any] = {}
    problem: str = ""


def confirm(
    table: Path,
    twins: Twins | None = None,
    module: str = "uplink",
    progress: Callable[[float], None] = lambda part: None,
) -> Iterator[Confirmed]:
    """Confirm what the table has to each vehicle that asks for it (`confirm` in its twin); without twins only say what.

    Raises InputError: no table, credentials that are refused; CloudUnreachable.
    """
    if not (table / TABLE_FILE).exists():
        raise InputError(table, "holds no table with its archive", "`bordnetz fleet decode` makes one")
    folders = vehicles(table)
    for done, (vehicle, folder) in enumerate(folders, start=1):
        try:
            archive = Archive(folder)
        except InputError as error:
            yield Confirmed(vehicle, problem=str(error))
        else:
            yield _write(vehicle, module, archive, twins) if twins else _confirmed(vehicle, archive, {})
        progress(done / len(folders))


def _write(vehicle: str, module: str, archive: Archive, twins: Twins) -> Confirmed:
    try:
        twin = twins.desired(vehicle, module)
        if twin is None:
            return Confirmed(vehicle, problem=f"the hub knows no module {module!r} of it")
        if twin.get("confirm") is not True:
            return Confirmed(vehicle, asks=False)
        found = _confirmed(vehicle, archive, twin)
        if found.patch:
            twins.patch(vehicle, module, found.patch)
    except MessageRejected as error:
        return Confirmed(vehicle, problem=str(error))
    return found


def _confirmed(vehicle: str, archive: Archive, twin: Twin) -> Confirmed:
    """twin: what is confirmed already; the patch is what differs."""
    said = twin.get("confirmed")
    before: Mapping[str, Any] = said if isinstance(said, dict) else {}
    began = archive.began_us()
    newest = sorted(began, key=lambda outbox: (began[outbox], outbox))[-MOST_OUTBOXES:]
    patch: dict[str, Any] = dict.fromkeys(set(before) - set(newest), None)
    records = missing = 0
    for outbox in newest:
        gaps, until = _gaps(archive, outbox)
        evictions = [eviction for owner, eviction in archive.evictions() if owner == outbox]
        one = _window(until, gaps, names_of(reversed(evictions)), _known(before.get(outbox)), _is_applied(twin))
        document = msgspec.to_builtins(one)
        if document != before.get(outbox):
            patch[outbox] = document
        count = sum(last - first + 1 for first, last in one.ranges())
        records += one.until - one.first + 1 - count
        missing += count
    return Confirmed(vehicle, True, records, missing, {"confirmed": patch} if patch else {})


def _window(
    until: int, gaps: list[Range], evictions: str, before: Confirmation | None, is_applied: bool
) -> Confirmation:
    """All of it; or, where there are more gaps than a twin can hold, the next part once the vehicle has the last."""
    whole = Confirmation.of(until, gaps, evictions)
    if whole.until == until or before is None:
        return whole
    first = before.until + 1 if is_applied else before.first
    if first > until:
        first = 1
    return Confirmation.of(until, [(max(a, first), b) for a, b in gaps if b >= first], evictions, first)


def _gaps(archive: Archive, outbox: str) -> tuple[list[Range], int]:
    """The sequences that have not come and may still be in the vehicle; and the last that is known of."""
    settled = Ranges(archive.sequences.get(outbox, ()))
    damaged = Counter(entry[1] for index in archive.indexes for entry in index.damaged if entry[0] == outbox)
    for sequence, copies in damaged.items():
        if copies >= DAMAGED_COPIES:
            settled.add(sequence, sequence)
    evictions = {eviction for owner, eviction in archive.evictions() if owner == outbox}
    for first, last in _gone(evictions):
        settled.add(first, last)
    until = settled.last or 0
    return settled.missing(1, until), until


def _gone(evictions: Iterable[Eviction]) -> Iterator[Range]:
    """The ranges of which every record was evicted, or never was (a salvage begins behind them)."""
    group: list[Eviction] = []
    for one in sorted(evictions, key=lambda eviction: eviction.first_sequence):
        if one.reason == "salvage":
            yield 1, one.last_sequence
        elif one.reason != "corrupt":  # whose owners and numbers may be damaged, too
            if group and one.first_sequence > max(each.last_sequence for each in group):
                yield from _whole(group)
                group = []
            group.append(one)
    yield from _whole(group)


def _whole(group: list[Eviction]) -> Iterator[Range]:
    """A record leaves once: as many as there are numbers are all of them."""
    if group:
        first, last = group[0].first_sequence, max(each.last_sequence for each in group)
        if sum(each.count for each in group) == last - first + 1:
            yield first, last


def _known(document: Any) -> Confirmation | None:
    try:
        return msgspec.convert(document, Confirmation)
    except msgspec.ValidationError:
        return None


def _is_applied(twin: Twin) -> bool:
    """Whether the module has said that it works with this version of its settings."""
    reported = twin.get("reported") or {}
    settings = reported.get("settings") if isinstance(reported, dict) else None
    return isinstance(settings, dict) and settings.get("version") == twin.get("$version")


class IoTHubTwins:
    """Twins of an IoT Hub, through its service API. Raises InputError."""

    def __init__(self, connection_string: str) -> None:
        way_out = f"set {VARIABLE} to the connection string of a policy that may change twins (service)"
        if not connection_string:
            raise InputError(VARIABLE, "is not set", way_out)
        try:
            from azure.iot.hub import IoTHubRegistryManager, models
        except ImportError as error:
            raise InputError("fleet confirm", "needs azure-iot-hub", "pip install 'bordnetz[hub]'") from error
        self._models = models
        try:
            self._manager = IoTHubRegistryManager.from_connection_string(connection_string)
        except (ValueError, KeyError) as error:  # whose texts may hold the key
            raise InputError(VARIABLE, "is no connection string of an IoT Hub", way_out) from error

    def desired(self, vehicle: str, module: str) -> Twin | None:
        call = self._manager.get_module_twin if module else self._manager.get_twin
        twin = self._call(call, vehicle, *([module] if module else []))
        if twin is None:
            return None
        properties = twin.properties
        return {**(properties.desired or {}), "reported": properties.reported or {}}

    def patch(self, vehicle: str, module: str, desired: Twin) -> None:
        twin = self._models.Twin(properties=self._models.TwinProperties(desired=dict(desired)))
        call = self._manager.update_module_twin if module else self._manager.update_twin
        self._call(call, vehicle, *([module] if module else []), twin, "*")

    def _call(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None if there is no such twin. A hub that is busy is asked again, after a while."""
        from msrest.exceptions import ClientRequestError, HttpOperationError

        for attempt in range(TRIES):
            try:
                return call(*arguments)
            except HttpOperationError as error:
                status = error.response.status_code
                if status == 404:
                    return None
                if status in (401, 403):
                    raise InputError(
                        VARIABLE, f"is refused ({status})", "give a policy that may change twins"
                    ) from error
                if status not in BUSY:
                    raise MessageRejected(f"the hub refuses its twin ({status})") from error
                problem = f"it answers {status}"
            except (ClientRequestError, OSError) as error:
                problem = str(error).splitlines()[0][:200]
            if attempt < TRIES - 1:
                time.sleep(2**attempt * random.uniform(0.5, 1.0))
        raise CloudUnreachable(f"the IoT Hub cannot be asked: {problem}; run it again later")

"""VSS overlays to the VSS signals of a decoder manifest: `bordnetz compile --vss OVERLAY --vss-spec TREE`.

    overlay (dbc2vss or network_serialization) ─┐
    tree (VSS 4, 5, 6) ─────────────────────────┴─► manifest.vss, and a diagnostic for each entry that cannot be used

Two forms of overlay: that of Kuksa's CAN provider (`dbc2vss`, or `dbc`), and COVESA's Network Serialization Profile
(`network_serialization`). What a transform does not say, the units of database and tree do. docs/vss.md.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edge.campaign import is_private
from edge.database import Diagnostic
from edge.errors import InputError
from edge.formula import Steps
from edge.formula import parse as parse_formula
from edge.manifest import DecoderManifest, Message, Signal
from edge.names import Names, raw_range
from edge.units import conversion
from edge.vss_signal import AS_IT_IS, VssSignal
from edge.vss_tree import Node, expand, read

DBC2VSS, PROFILE = ("dbc2vss", "dbc"), "network_serialization"
KNOWN = {"signal", "transform", "interval_ms", "on_change"}
IGNORED = {"endianness", "length_bits", "default"}  # of the profile: the database says so itself
SIGNALS = ("sensor", "actuator", "attribute")
WHOLE = {
    f"{sign}int{bits}": (0, (1 << bits) - 1) if sign else (-(1 << bits - 1), (1 << bits - 1) - 1)
    for bits in (8, 16, 32, 64)
    for sign in ("u", "")
}
DATATYPES = (*WHOLE, "float", "double", "boolean", "string")
Value = str | bool | int | float


def add_vss(
    manifest: DecoderManifest, overlays: Iterable[Path], trees: Iterable[Path] = ()
) -> tuple[DecoderManifest, list[Diagnostic]]:
    """The manifest with the VSS signals of these overlays, over these trees (a later one counts).

    Without a tree, paths and units are those of the overlays. Raises InputError: a file that is no tree or overlay.
    """
    made = _Overlay(manifest, trees)
    for path in overlays:
        made.add(path)
    vss = made.signals()
    return DecoderManifest(manifest.buses, manifest.messages, manifest.sources, vss), made.diagnostics


class _Unusable(Exception):
    """Why an entry is left out."""


class _Overlay:
    def __init__(self, manifest: DecoderManifest, trees: Iterable[Path]) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._names = Names(manifest)
        self._short: dict[str, list[int]] = {}  # by the signal's name alone, as mapping files mostly give it
        for place, (_, _, signal) in enumerate(self._names.signals):
            self._short.setdefault(signal.name, []).append(place)
        self._tree: dict[str, Node] = {}
        for path in trees:
            self._tree |= {node.path: node for node in read(path)}
        self._has_tree = bool(self._tree)
        self._entries: dict[str, Node] = {}

    def add(self, file: Path) -> None:
        """Take an overlay's entries, and what else it says of the tree."""
        found = 0
        for node in read(file):
            if _mapping_key(node) is None:
                if node.is_branch or not self._has_tree:
                    self._tree[node.path] = node
                continue
            found += 1
            if node.path in self._entries:
                before = self._entries[node.path]
                self._note(node, f"{node.path} is mapped at {before.place} already", "the later one counts")
            self._entries[node.path] = node
        if not found:
            self.diagnostics.append(Diagnostic(file.name, 0, "", "maps no signal", "nothing comes from it"))

    def signals(self) -> tuple[VssSignal, ...]:
        tree, made = expand(self._tree), []
        for path, entry in self._entries.items():
            try:
                made.append(self._signal(path, entry, tree))
            except _Unusable as reason:
                self._note(entry, str(reason), "it is left out")
            except InputError as error:
                self._note(entry, f"{error.problem}; {error.way_out}", "it is left out")
        return tuple(made)

    def _signal(self, path: str, entry: Node, tree: Mapping[str, Node]) -> VssSignal:
        of_tree = tree.get(path)
        if of_tree is None and self._has_tree and "description" not in entry.attributes:
            raise _Unusable(_unknown_path(path, tree))
        if self._names.find(path):
            raise _Unusable("is the name of a signal of the databases too")
        attributes = {**(of_tree.attributes if of_tree else {}), **entry.attributes}
        datatype, unit = str(attributes.get("datatype", "")), str(attributes.get("unit") or "")
        if attributes.get("type", "sensor") not in SIGNALS:
            raise _Unusable(f"is of the type {str(attributes['type'])[:40]}, not a {', '.join(SIGNALS)}")
        if datatype not in DATATYPES:
            raise _Unusable(f"has the datatype {datatype[:40]!r}; known are {', '.join(DATATYPES)}")
        key = _mapping_key(entry)
        assert key is not None
        mapping = entry.attributes[key]
        if not isinstance(mapping, dict) or not isinstance(mapping.get("signal"), str):
            raise _Unusable(f"{key} names no signal")
        for field in mapping.keys() - KNOWN - (IGNORED if key == PROFILE else set()):
            raise _Unusable(f"{key}.{str(field)[:40]} is not known here")
        place = self._place(mapping["signal"])
        _, message, signal = self._names.signals[place]
        steps, values = self._meaning(entry, mapping, attributes, message, signal, datatype, unit)
        interval_ms, on_change = mapping.get("interval_ms"), mapping.get("on_change")
        if interval_ms is None and on_change is None:  # what each form says that this means
            interval_ms, on_change = (0, True) if key == PROFILE else (1000, False)
        if not isinstance(interval_ms or 0, int) or not 0 <= (interval_ms or 0) <= 86_400_000:
            raise _Unusable(f"{key}.interval_ms is {str(interval_ms)[:40]}, not a number of milliseconds up to a day")
        private = is_private(path) or _is_tagged(path, attributes, tree)
        return VssSignal(path, place, datatype, unit, steps, values, interval_ms or 0, on_change is True, private)

    def _place(self, name: str) -> int:
        places = self._names.find(name) or self._short.get(name, [])
        if not places:
            close = get_close_matches(name, self._short, n=1, cutoff=0.6)
            raise _Unusable(f"{name[:100]} is no signal of the databases" + (f"; is it {close[0]}?" if close else ""))
        if len(places) > 1:
            full = [f"{self._names.signals[p][1].bus}.{self._names.signals[p][0]}" for p in places[:4]]
            raise _Unusable(f"{name} could be {', '.join(full)}{'…' if len(places) > 4 else ''}: name one of them so")
        return places[0]

    def _meaning(
        self,
        entry: Node,
        mapping: Mapping[str, Any],
        attributes: Mapping[str, Any],
        message: Message,
        signal: Signal,
        datatype: str,
        unit: str,
    ) -> tuple[Steps | None, dict[int, Value]]:
        """steps and values, as VssSignal has them."""
        transform = mapping.get("transform") or {}
        if not isinstance(transform, dict) or transform.keys() - {"math", "mapping", "representation"}:
            raise _Unusable("its transform is not of math, mapping or representation")
        math, pairs = transform.get("math"), _pairs(transform)
        if pairs is not None and math is None:
            found = _mapped(pairs, signal)
            return None, {raw: self._value(value, datatype, attributes) for raw, value in found.items()}
        if math is not None:
            if datatype in ("boolean", "string"):
                raise _Unusable(f"its transform makes a number, and it is a {datatype}")
            reasons: dict[int, Value] = {raw: str(text) for raw, text in _mapped(pairs or [], signal).items()}
            return parse_formula(str(math), f"{entry.path}: math"), reasons
        if datatype == "string":
            if not signal.labels:
                raise _Unusable(f"is a string, and {signal.name} has no value table")
            return None, {raw: self._value(label, datatype, attributes) for raw, label in signal.labels.items()}
        if datatype == "boolean":
            if signal.length > 2 or (signal.factor, signal.offset) != (1, 0) or signal.is_float or signal.signed:
                raise _Unusable(f"is a boolean, and {signal.name} is no flag of one or two bits: map its values")
            return None, {0: False, 1: True}
        return self._converted(entry, signal, unit), {}

    def _converted(self, entry: Node, signal: Signal, unit: str) -> Steps:
        if not unit or not signal.unit:
            if unit not in ("", "ratio") and not signal.unit:
                self._note(entry, f"{signal.name} has no unit in its database", f"taken as {unit}")
            return AS_IT_IS
        steps = conversion(signal.unit, unit)
        if steps is None:
            raise _Unusable(
                f"{signal.name} is in {signal.unit[:40]!r}, which cannot be converted to {unit[:40]!r}: give math"
            )
        return steps

    def _value(self, value: Any, datatype: str, attributes: Mapping[str, Any]) -> Value:
        """What a value of the transform is in the datatype of the tree."""
        enum, allowed = attributes.get("enum"), attributes.get("allowed")
        if isinstance(enum, dict) and isinstance(value, str) and value in enum:
            value = enum[value]
        if datatype == "boolean" and isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if datatype == "string":
            value = str(value).lower() if isinstance(value, bool) else str(value)
        fits = {"string": isinstance(value, str), "boolean": isinstance(value, bool)}
        low, high = WHOLE.get(datatype, (-1e300, 1e300))
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        if not fits.get(datatype, is_number) or (datatype in WHOLE and value != int(value)):
            raise _Unusable(f"{str(value)[:40]!r} is no {datatype}")
        if isinstance(allowed, list) and value not in allowed:
            close = get_close_matches(str(value), map(str, allowed), n=1, cutoff=0.4)
            raise _Unusable(f"{value!r} is not among its allowed values" + (f"; is it {close[0]!r}?" if close else ""))
        return value  # type: ignore[no-any-return]

    def _note(self, entry: Node, problem: str, what_was_done: str) -> None:
        path, problem = (" ".join(text.split()) for text in (entry.path, problem))
        self.diagnostics.append(Diagnostic(entry.file, entry.line, path, problem, what_was_done))


def _mapping_key(node: Node) -> str | None:
    return next((key for key in (*DBC2VSS, PROFILE) if key in node.attributes), None)


def _unknown_path(path: str, tree: Mapping[str, Node]) -> str:
    close = get_close_matches(path, tree, n=1, cutoff=0.6)
    return "is not in the tree" + (
        f"; is it {close[0]}?" if close else ": a new one needs a description, as in vss-tools"
    )


def _is_tagged(path: str, attributes: Mapping[str, Any], tree: Mapping[str, Node]) -> bool:
    """privacy on it or on a branch above it: a key of that name, or among the impact profiles of cybersecurity."""
    parts = path.split(".")
    above = [
        tree[".".join(parts[:depth])].attributes for depth in range(1, len(parts)) if ".".join(parts[:depth]) in tree
    ]
    for each in (attributes, *above):
        security = each.get("cybersecurity")
        profiles = security.get("impact_profiles") if isinstance(security, dict) else None
        if each.get("privacy") or "privacy" in (profiles if isinstance(profiles, list) else [profiles]):
            return True
    return False


def _pairs(transform: Mapping[str, Any]) -> list[tuple[Any, Any, bool]] | None:
    """(from, to, whether a number in from is raw) of a transform; None where it has none."""
    if "mapping" in transform and "representation" in transform:
        raise _Unusable("has both mapping and representation")
    key = "mapping" if "mapping" in transform else "representation"
    rows, fields = transform.get(key), ("from", "to") if key == "mapping" else ("value", "text")
    if rows is None:
        return None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) == set(fields) for row in rows):
        raise _Unusable(f"its {key} is no list of {fields[0]} and {fields[1]}")
    return [(row[fields[0]], row[fields[1]], key == "representation") for row in rows]


def _mapped(pairs: Iterable[tuple[Any, Any, bool]], signal: Signal) -> dict[int, Any]:
    """What each raw value becomes; of several for one, the first."""
    labels: dict[str, list[int]] = {}
    for raw, label in signal.labels.items():
        labels.setdefault(label, []).append(raw)
    found: dict[int, Any] = {}
    for source, target, is_raw in pairs:
        if is_raw and isinstance(target, str) and target in labels:
            source, target = target, source  # text is the network's name, value is that of VSS
        if isinstance(source, str) and source in labels:
            raws = labels[source]
        elif isinstance(source, int | float) and not isinstance(source, bool):
            raws = [_raw_of(source, signal, is_raw)]
        elif isinstance(source, bool):  # YAML 1.1 reads NO, OFF, YES and ON as booleans
            words = ("yes", "on", "true") if source else ("no", "off", "false")
            raws = [raw for raw, label in signal.labels.items() if label.lower() in words] or [int(source)]
        else:
            close = get_close_matches(str(source), labels, n=1, cutoff=0.4)
            raise _Unusable(f"{signal.name} has no label {source!r}" + (f"; is it {close[0]!r}?" if close else ""))
        for raw in raws:
            found.setdefault(raw, target)
    return found


def _raw_of(number: int | float, signal: Signal, is_raw: bool) -> int:
    low, high = raw_range(signal)
    if not signal.is_float and abs(number) <= 1e20:
        raw = number if is_raw or not signal.factor else (number - signal.offset) / signal.factor
        if abs(raw - round(raw)) < 1e-6 and low <= round(raw) <= high:
            return round(raw)
    raise _Unusable(f"{signal.name} can never be exactly {str(number)[:40]}")

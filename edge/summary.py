"""Summaries: what a signal came to over a period or an event, instead of its samples.

    SignalRule ──plan_summary──► Summary ──► cy_core.summarise ──► columns ──encode──► block ──decode──► columns

They are no values of the signal, so they travel and lie in tables as signals of their own: `SPEED#mean`,
`SPEED#count`, `SPEED#sum`, `SPEED#dwell[20,50)` in seconds. The block says which there are; with the decoder manifest
that is all that a reader needs. docs/formats/block.md
"""

import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from cy_core.columns import Columns
from cy_core.crc32c import crc32c
from cy_core.plan import Plan
from edge import block
from edge.errors import BlockCorrupt, InputError
from edge.manifest import DecoderManifest, Message, Signal, no_values

if TYPE_CHECKING:
    from edge.names import Names
    from edge.rule import Rule, SignalRule

HEAD = block.HEAD  # magic, version, coding, CRC-32C of what follows
SIZE = struct.Struct("<H")  # of the description
FORM = (2, 3)
MOST_CLASSES = 64  # of a signal
MOST_COLUMNS = 4096  # of a campaign
MOST_DESCRIBED = 16_384  # bytes
MOST_KNOWN = 64  # forms that a reader keeps at hand
COUNT_BITS, DWELL_BITS = 32, 40
KINDS = {"mean": 1, "count": 2, "sum": 4, "dwell": 8}  # cy_core.summarise.KINDS
KEPT = ("mean", "count", "sum")  # of SignalRule.keep


class Summary(NamedTuple):
    """Of one signal. classes: ascending edges, or labels, and one class more for what is in none of them.

    labels: (raw value, class). ranges: raw values that are no numbers, ascending. span and hold are 0 for none.
    """

    place: int
    kinds: int
    span_us: int
    hold_us: int
    factor: float
    offset: float
    classes: tuple[float, ...] | tuple[str, ...]
    labels: tuple[tuple[int, int], ...]
    ranges: tuple[tuple[int, int], ...]

    def row(self) -> tuple[Any, ...]:
        edges = () if self.labels else self.classes
        count = 0 if not self.kinds & KINDS["dwell"] else len(self.classes) + (1 if self.labels else 2)
        return (*self[:6], edges, self.labels, self.ranges, count)


# -- from a campaign -----------------------------------------------------------------------------------------


def plan_summaries(
    place: str, chosen: Mapping[int, tuple[str, "SignalRule"]], names: "Names", has_events: bool
) -> list[Summary]:
    """Of a campaign's rules for signals, by their number. Raises InputError, which begins with place."""
    found: list[Summary] = []
    for number, (glob, rule) in sorted(chosen.items()):
        if rule.filter == "histogram" or set(rule.keep) & set(KEPT):
            at = f"{place}: signals.{glob}"
            if not rule.period_s and not has_events:
                raise InputError(f"{at}.period_s", "is missing: without `when` there is no event", "for example 60")
            found.append(_summary(at, rule, number, *names.signals[number][1:]))
    columns = sum(one.row()[9] + (one.kinds & 7).bit_count() for one in found)
    if columns > MOST_COLUMNS:
        raise InputError(place, f"asks for {columns} summaries and classes", f"{MOST_COLUMNS} at most: name less")
    if len(describe(found)) > MOST_DESCRIBED:
        raise InputError(place, "has classes with too long names", "give fewer or shorter ones")
    return found


def _summary(place: str, rule: "SignalRule", number: int, message: Message, signal: Signal) -> Summary:
    is_histogram = rule.filter == "histogram"
    kinds = KINDS["dwell"] if is_histogram else sum(KINDS[kind] for kind in set(rule.keep) & set(KEPT))
    classes, labels = _classes(place, rule, message, signal) if is_histogram else ((), ())
    if rule.max_hold_s and rule.period_s and rule.max_hold_s > rule.period_s:
        raise InputError(f"{place}.max_hold_s", "is longer than period_s", "a value holds for a period at most")
    span_us, hold_us = round((rule.period_s or 0) * 1e6), round((rule.max_hold_s or 0) * 1e6)
    scale = float(signal.factor), float(signal.offset)
    return Summary(number, kinds, span_us, hold_us, *scale, classes, labels, _without_number(message, signal))


def _classes(
    place: str, rule: "SignalRule", message: Message, signal: Signal
) -> tuple[tuple[float, ...] | tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Classes, and the raw values of labelled ones with the numbers of theirs."""
    name = f"{message.name}.{signal.name}"
    given: Sequence[float | str] = rule.classes or sorted(set(signal.labels.values()))
    if not given or (signal.is_float and not rule.classes):
        raise InputError(f"{place}.classes", f"is missing: {name} has no labels", 'edges, as in "classes": [0, 20, 50]')
    if len(given) > MOST_CLASSES:
        raise InputError(f"{place}.classes", f"has {len(given)} classes for {name}", f"at most {MOST_CLASSES}")
    labels = tuple(label for label in given if isinstance(label, str))
    edges = tuple(float(edge) for edge in given if not isinstance(edge, str))
    if labels and edges:
        raise InputError(f"{place}.classes", "mixes numbers and labels", "give edges, or labels")
    if edges:
        if not all(a < b for a, b in itertools.pairwise(edges)) or not all(map(math.isfinite, edges)):
            raise InputError(f"{place}.classes", "are no ascending edges", 'as in "classes": [0, 20, 50]')
        return edges, ()
    if len(set(labels)) < len(labels):
        raise InputError(f"{place}.classes", "has a label twice", "name each once")
    known = set(signal.labels.values())
    for label in labels:
        if label not in known:
            there = ", ".join(sorted(known)[:12]) or "none"
            raise InputError(f"{place}.classes", f"{name} has no label {label!r}", f"there are: {there}")
    numbers = {label: number for number, label in enumerate(labels)}
    pairs = sorted((raw, numbers[label]) for raw, label in signal.labels.items() if label in numbers)
    return labels, tuple(pairs)


def _without_number(message: Message, signal: Signal) -> tuple[tuple[int, int], ...]:
    """Ranges of raw values that have a label or say that there is none: apart, ascending, inside the field."""
    if signal.is_float:
        return ()
    spans = [(raw, raw) for raw in signal.labels] + [(low, high) for low, high, _ in no_values(message, signal)]
    joined: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return tuple(joined)


# -- in a block ----------------------------------------------------------------------------------------------


class Form(msgspec.Struct, array_like=True, frozen=True):
    """What is in a block: sets of classes; runs of [first signal of the manifest, how many, kinds, set or -1]."""

    classes: list[list[float | str]]
    runs: list[tuple[int, int, int, int]]


class Summaries:
    """The manifest and plan of what a form describes: a message for each of its signals. Raises BlockCorrupt."""

    def __init__(self, manifest: DecoderManifest, description: bytes) -> None:
        self.description = description
        try:
            form = msgspec.json.decode(description, type=Form)
            named = [(message, signal) for message in manifest.messages for signal in message.signals]
            messages: list[Message] = []
            columns = 0
            for first, count, kinds, classes in form.runs:
                is_known = 0 <= classes < len(form.classes) if kinds & KINDS["dwell"] else classes == -1
                if not (is_known and 0 <= first < first + count <= len(named) and 0 < kinds < 16):
                    raise ValueError(f"it names signals {first} to {first + count - 1} with {kinds} and {classes}")
                for message, signal in named[first : first + count]:
                    own = _signals(signal, kinds, form.classes[classes] if classes >= 0 else ())
                    messages.append(Message(message.bus, len(messages), message.name, 8, extended=True, signals=own))
                    columns += len(own)
                    if columns > MOST_COLUMNS:
                        raise ValueError(f"it has over {MOST_COLUMNS} columns")
            self.places = [first + i for first, count, *_ in form.runs for i in range(count)]
            self.manifest = DecoderManifest(manifest.buses, tuple(messages))
            self.plan = Plan(self.manifest)
        except (msgspec.MsgspecError, ValueError) as error:
            raise BlockCorrupt(f"the block does not say what it sums up: {error}") from error

    @classmethod
    def of(cls, manifest: DecoderManifest, summaries: Sequence[Summary]) -> "Summaries":
        return cls(manifest, describe(summaries))


def named(kinds: int) -> str:
    """As a person says it: `histogram`, or `mean, count`."""
    return ", ".join(name for name, bit in KINDS.items() if kinds & bit).replace("dwell", "histogram")


def describe(summaries: Sequence[Summary]) -> bytes:
    sets: dict[tuple[Any, ...], int] = {}
    runs: list[list[int]] = []
    for one in summaries:
        own = sets.setdefault(one.classes, len(sets)) if one.kinds & KINDS["dwell"] else -1
        if runs and runs[-1][2:] == [one.kinds, own] and sum(runs[-1][:2]) == one.place:
            runs[-1][1] += 1
        else:
            runs.append([one.place, 1, one.kinds, own])
    return msgspec.json.encode([list(sets), runs])


def _signals(signal: Signal, kinds: int, classes: Sequence[float | str]) -> tuple[Signal, ...]:
    found = []
    for kind in KEPT:
        if kinds & KINDS[kind]:
            name = f"{signal.name}#{kind}"
            is_count = kind == "count"
            found.append(
                Signal(name, 0, COUNT_BITS) if is_count else Signal(name, 0, 64, is_float=True, unit=signal.unit)
            )
    if kinds & KINDS["dwell"]:
        names = [f"{signal.name}#dwell{name}" for name in _class_names(classes)]
        found += [Signal(name, 0, DWELL_BITS, factor=0.000001, unit="s") for name in names]
    return tuple(found)


def _class_names(classes: Sequence[float | str]) -> list[str]:
    if classes and isinstance(classes[0], str):
        return [*(f"={label}" for label in classes), "-other"]
    edges = [_short(float(edge)) for edge in classes]
    between = [f"[{low},{high})" for low, high in itertools.pairwise(edges)]
    return [f"<{edges[0]}", *between, f">={edges[-1]}", "-other"] if edges else ["-other"]


def _short(edge: float) -> str:
    return f"{edge:g}" if float(f"{edge:g}") == edge else repr(edge)


def encode(
    summaries: Summaries, columns: Columns, most_bytes: int, first: int = 0, end: int | None = None
) -> list[tuple[bytes, int]]:
    """Blocks of what the columns hold of the signals first..end-1, with the number of their values.

    Each has at most most_bytes, unless a signal alone takes more.
    """
    end = len(summaries.places) if end is None else end
    keep = bytearray(summaries.plan.signal_count)
    place = 0
    for number, message in enumerate(summaries.manifest.messages):
        if first <= number < end:
            keep[place : place + len(message.signals)] = b"\1" * len(message.signals)
        place += len(message.signals)
    count = columns.samples(keep)
    if not count:
        return []
    rest = SIZE.pack(len(summaries.description)) + summaries.description + block.encode(columns, keep)
    if HEAD.size + len(rest) > most_bytes and end - first > 1:
        middle = (first + end) // 2
        halves = (first, middle), (middle, end)
        return [one for half in halves for one in encode(summaries, columns, most_bytes, *half)]
    return [(HEAD.pack(block.MAGIC, *FORM, crc32c(rest)) + rest, count)]


class SummingReducer:
    """A Reducer (cy_core/reduce.pyx) that sums up, too."""

    def __init__(self, plan: Plan, rules: Sequence["Rule"], summaries: Sequence[Summary]) -> None:
        from cy_core.reduce import Reducer  # these here: who only reads does not need them
        from cy_core.summarise import Summariser

        self._summaries = Summaries.of(plan.manifest, summaries)
        self._summariser = Summariser(plan, self._summaries.plan, [one.row() for one in summaries])
        self._summed = Columns(self._summaries.plan)
        self._reducer = Reducer(plan, rules)

    def save(self) -> bytes:
        reduced = self._reducer.save()
        return len(reduced).to_bytes(4, "little") + reduced + self._summariser.save()

    def restore(self, state: bytes) -> None:
        end = 4 + int.from_bytes(state[:4], "little")
        self._reducer.restore(state[4:end])
        self._summariser.restore(state[end:])

    def forget(self) -> None:
        self._reducer.forget()
        self._summariser.forget()

    def reduce(self, columns: Columns, into: Columns, now_us: int, last: bool = False) -> int:
        self._summariser.summarise(columns, self._summed, now_us, last)
        return self._reducer.reduce(columns, into, now_us, last)

    def summaries(self, most_bytes: int) -> list[tuple[bytes, int]]:
        """Of the last reduce(): blocks of the periods that are over, with the number of their values."""
        return encode(self._summaries, self._summed, most_bytes)


def is_summary(data: bytes) -> bool:
    return data[:4] == block.MAGIC + bytes(FORM)


class Reader:
    """Reads summaries of one manifest; keeps the forms of the last blocks at hand."""

    def __init__(self, manifest: DecoderManifest) -> None:
        self._manifest = manifest
        self._known: dict[bytes, Summaries] = {}

    def read(self, data: bytes) -> tuple[Summaries, Columns]:
        """Raises BlockCorrupt."""
        rest = memoryview(data)[HEAD.size :]
        if len(rest) < SIZE.size or not is_summary(data):
            raise BlockCorrupt("the block holds no summaries")
        if crc32c(rest) != HEAD.unpack_from(data)[3]:
            raise BlockCorrupt("the block does not match its checksum")
        end = SIZE.size + SIZE.unpack_from(rest)[0]
        description = bytes(rest[SIZE.size : end])
        summaries = self._known.pop(description, None) or Summaries(self._manifest, description)
        self._known[description] = summaries  # the latest last
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return summaries, block.decode(bytes(rest[end:]), summaries.plan)

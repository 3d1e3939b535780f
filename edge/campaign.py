"""Campaigns: what to collect, when, how accurately, and how urgently. docs/campaigns.md tells the story.

    {"drive": {"signals": {"WHEEL_SPEEDS.*": {"max_error": 0.05}, "GEARBOX.GEAR": {"filter": "change"}}},
     "hard_brake": {"when": "rising(BRAKE.PRESSURE > 80)", "before_s": 10, "after_s": 5, "signals": {"*": {}}}}

A document is compiled against the manifest to a Selection: a byte for each signal, reductions, a condition. What no
campaign names never leaves the vehicle.
"""

import math
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from edge.errors import InputError
from edge.manifest import DecoderManifest, Signal, no_values
from edge.names import Names, raw_range
from edge.rule import Exact, Rule, SignalRule

if TYPE_CHECKING:
    from edge.condition import Program
    from edge.raw import RawRules
    from edge.summary import Summary
    from edge.vss_signal import VssSignal

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Identifiers of a vehicle, and so of a person: an entry must name them, a glob over everything does not.
PRIVATE = re.compile(r"(^|[._])(VIN|VEHICLE_?IDENTIFICATION_?NUMBER)([._]|$)", re.IGNORECASE)
SNAPSHOT = "snapshot"  # the stream of what the direct method of this name captures
MOST_SIGNAL_RULES = 10_000
MOST_STEP = 1 << 31  # of the codec

Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]


class Campaign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """signals: rules by globs over `Message.Signal`, `bus.Message.Signal` or VSS paths, the most specific
    one counts; `/` is taken for `.`, because names in a twin must not have dots. frames: raw frames, bit for bit, as in
    "can0:*" (edge/raw.py).

    priority: 0 is sent first, 9 last. latency_s: a block is stored at the latest so long after its first frame.
    ttl_s: what was not sent after so long goes, 0: never. tick_us: times are rounded to multiples of it;
    time_tolerance_s: times lie on lines, wrong by that at most.
    when: a condition (edge/condition.py); without one the campaign collects always, from start to end. With one, each
    time it is true is an event: frames from before_s before to after_s behind it, again at the earliest cooldown_s
    later, at most max_events_per_day by UTC.
    """

    signals: dict[str, SignalRule] = {}
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    frames: list[str] = []
    when: str | None = None
    before_s: Seconds = 0.0
    after_s: Seconds = 0.0
    cooldown_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0
    max_events_per_day: Annotated[int, msgspec.Meta(ge=1)] | None = None
    start: datetime | None = None
    end: datetime | None = None
    latency_s: Annotated[float, msgspec.Meta(ge=0.05, le=60)] | None = None
    ttl_s: Annotated[int, msgspec.Meta(ge=0, le=10 * 365 * 86_400)] = 0
    tick_us: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 1
    time_tolerance_s: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0


class Selection(msgspec.Struct, frozen=True):
    """A campaign, compiled. keep has one byte for each signal of the manifest, in its order.

    rules: a reduction for each signal, None where every sample is kept as it is. raw: which frames go as they are.
    steps: of each signal the step that its reduction leaves raw values at, 1 where it has none. summaries: what goes
    beside samples.
    """

    stream: str
    priority: int
    keep: bytes
    campaign: Campaign
    rules: tuple[Rule, ...] | None = None
    program: "Program | None" = None
    is_snapshot: bool = False
    raw: "RawRules | None" = None
    steps: "array[int] | None" = None
    summaries: "tuple[Summary, ...]" = ()

    @property
    def is_event(self) -> bool:
        return self.program is not None or self.is_snapshot

    @property
    def start_us(self) -> int | None:
        return _microseconds(self.campaign.start)

    @property
    def end_us(self) -> int | None:
        return _microseconds(self.campaign.end)


def compile_campaign(
    name: str, campaign: Campaign, manifest: DecoderManifest | Names, *, is_snapshot: bool = False
) -> Selection:
    """Raises InputError, which names the campaign, the path in it, what is wrong, and what would be right."""
    names = manifest if isinstance(manifest, Names) else Names(manifest)
    place = f"campaign {name}"
    if not NAME.fullmatch(name):
        raise InputError(f"campaign {name!r}", "is no usable name", "up to 64 letters, digits, _ and -")
    if name == SNAPSHOT and not is_snapshot:
        raise InputError(place, "is the stream of the method snapshot", "choose another name")
    if not 0 <= campaign.priority <= 9:
        raise InputError(f"{place}: priority", f"{campaign.priority} is out of range", "0 (first) to 9")
    if not campaign.signals and not campaign.frames:
        raise InputError(f"{place}: signals", "selects nothing", 'for example {"*": {}}, or frames ["can0:*"]')
    if len(campaign.signals) > MOST_SIGNAL_RULES:
        raise InputError(f"{place}: signals", f"has {len(campaign.signals)} entries", "use globs")
    _check_event(place, campaign, is_snapshot)
    chosen = _chosen(place, campaign, names)
    rules, summaries = _rules(place, campaign, names, chosen, is_snapshot)
    reduces = any(rule[0] != "drop" and rule[:5] != ("every", 0.0, 0, 0, 0) for rule in rules)
    program = None
    if campaign.when is not None:
        from edge.condition import compile_condition  # here: not every vehicle has a condition

        program = compile_condition(campaign.when, names, f"{place}: when")
    keep = bytes(number in chosen for number in range(len(rules)))
    raw = None
    if campaign.frames:
        from edge.raw import compile_frames  # here: few vehicles need it

        raw = compile_frames(f"{place}: frames", campaign.frames, names, is_private)
    reductions = tuple(rules) if reduces or summaries else None
    steps = _steps(rules, names)
    more = raw, steps, tuple(summaries)
    return Selection(name, campaign.priority, keep, campaign, reductions, program, is_snapshot, *more)


def compile_campaigns(
    campaigns: Mapping[str, Campaign], manifest: DecoderManifest | Names, known: Iterable[Selection] = ()
) -> tuple[list[Selection], dict[str, str]]:
    """The campaigns that can run, and the reason for each that cannot. known: made before, for the same manifest."""
    names = manifest if isinstance(manifest, Names) else Names(manifest)
    before = {selection.stream: selection for selection in known}
    selections: list[Selection] = []
    refused: dict[str, str] = {}
    for name, campaign in campaigns.items():
        if name in before and before[name].campaign == campaign:
            selections.append(before[name])
            continue
        try:
            selections.append(compile_campaign(name, campaign, names))
        except InputError as error:
            refused[name] = str(error)
    return selections, refused


def schema() -> dict[str, Any]:
    """The JSON Schema of a campaign document."""

    class Document(msgspec.Struct, forbid_unknown_fields=True):
        """Campaigns by name."""

        campaigns: dict[str, Campaign]

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Document)}


def _check_event(place: str, campaign: Campaign, is_snapshot: bool) -> None:
    if campaign.when is None:
        only = ("cooldown_s", "max_events_per_day", *(() if is_snapshot else ("before_s", "after_s")))
        for field in only:
            if getattr(campaign, field):
                raise InputError(f"{place}: {field}", "needs `when`", "without it the campaign collects always")
    for field in ("start", "end"):
        value = getattr(campaign, field)
        if value is not None and value.tzinfo is None:
            raise InputError(f"{place}: {field}", "has no time zone", "as in 2027-01-31T08:00:00Z")
    if campaign.tick_us != 1 and campaign.time_tolerance_s:
        raise InputError(f"{place}: tick_us", "means nothing beside time_tolerance_s", "leave one of them out")
    if campaign.time_tolerance_s and campaign.frames:
        raise InputError(f"{place}: time_tolerance_s", "is not for raw frames", "give tick_us")
    if campaign.start is not None and campaign.end is not None and campaign.start >= campaign.end:
        raise InputError(f"{place}: end", "is not behind start", "leave one out, or give a later end")


def _steps(rules: Sequence[Rule], names: Names) -> "array[int] | None":
    """Raw values of signals with a bound come at multiples of 2n + 1, n the bound: cy_core.reduce, EVERY."""
    steps = array("I", [1]) * len(rules)
    for number, (kind, bound, *_) in enumerate(rules):
        if kind == "every" and 1 <= bound < MOST_STEP // 2:
            signal = names.signals[number][2]
            if not signal.is_float and signal.length <= 60:
                steps[number] = 2 * int(bound) + 1
    return steps if any(step != 1 for step in steps) else None


def _chosen(place: str, campaign: Campaign, names: Names) -> dict[int, tuple[str, SignalRule]]:
    """For signals, by their number, the most specific entry that matches them."""
    chosen: dict[int, tuple[str, SignalRule]] = {}
    for glob in sorted(campaign.signals, key=_specificity):
        dotted = glob.replace("/", ".")
        matches = names.matches(dotted)
        if not matches:
            raise InputError(f"{place}: signals.{glob}", "matches no signal of the manifest", names.closest(dotted))
        _check_rule(f"{place}: signals.{glob}", campaign.signals[glob])
        named = [number for number in matches if not _is_withheld(number, dotted, names)]
        if not named:
            first = names.signals[next(iter(matches))][0]
            raise InputError(
                f"{place}: signals.{glob}", "matches nothing but identifiers of the vehicle", f"name {first}"
            )
        for number in named:
            place_of = f"{place}: signals.{glob}.max_error"
            chosen[number] = glob, _in_own_unit(place_of, campaign.signals[glob], names, number, matches[number])
    return chosen


def _rules(
    place: str, campaign: Campaign, names: Names, chosen: Mapping[int, tuple[str, SignalRule]], is_snapshot: bool
) -> "tuple[list[Rule], list[Summary]]":
    """A reduction for each signal of the manifest, and the summaries."""
    rules = [DROPPED] * len(names.signals)
    for number, (glob, rule) in chosen.items():
        full, message, signal = names.signals[number]
        none = tuple((low, high) for low, high, _ in no_values(message, signal))
        rules[number] = _rule(f"{place}: signals.{glob}", rule, full, signal, "*" in glob or "?" in glob, none)
    if not any(rule.filter == "histogram" or SUMMED.intersection(rule.keep) for _, rule in chosen.values()):
        return rules, []
    from edge.summary import plan_summaries  # here: not every vehicle needs it

    return rules, plan_summaries(place, chosen, names, campaign.when is not None or is_snapshot)


def _is_withheld(number: int, entry: str, names: Names) -> bool:
    """An identifier, or what VSS tags as private, that the entry does not name."""
    if names.find(entry):
        return False
    return names.is_tagged(number) or (is_private(names.signals[number][0]) and not is_private(entry))


def is_private(name: str) -> bool:
    """Whether `Message.Signal`, or a glob over it, names an identifier of the vehicle."""
    return PRIVATE.search(name) is not None


def _check_rule(place: str, rule: SignalRule) -> None:
    """Fields that do not go together are refused, not ignored."""
    takes = {
        "every": {"max_error"},
        "change": {"max_error", "max_hold_s"},
        "curvelog": {"max_error", "max_hold_s"},
        "timebased": {"period_s"},
        "window": {"period_s", "keep"},
        "histogram": {"classes", "period_s", "max_hold_s"},
    }[rule.filter]
    for field in ("max_error", "period_s", "max_hold_s", "keep", "classes"):
        if getattr(rule, field) and field not in takes:
            raise InputError(f"{place}.{field}", f"means nothing with filter {rule.filter}", f"it takes {_list(takes)}")
    for field in ("period_s", "keep") if rule.filter != "histogram" else ():
        if field in takes and not getattr(rule, field):
            raise InputError(f"{place}.{field}", f"is missing: filter {rule.filter} needs it", EXAMPLES[rule.filter])
    if rule.filter == "curvelog" and not rule.max_error:
        raise InputError(f"{place}.max_error", "is missing: filter curvelog needs it", EXAMPLES["curvelog"])


EXAMPLES = {
    "timebased": 'as in {"filter": "timebased", "period_s": 1}',
    "window": 'as in {"filter": "window", "period_s": 60, "keep": ["min", "max", "mean"]}',
    "curvelog": 'as in {"filter": "curvelog", "max_error": "0.1%"}',
}
KEEP_BITS = {"first": 1, "last": 2, "min": 4, "max": 8}  # cy_core.reduce.KEEP
SUMMED = {"mean", "count", "sum"}
DROPPED: Rule = ("drop", 0.0, 0, 0, 0, (), False)


def _in_own_unit(place: str, rule: SignalRule, names: Names, number: int, paths: "Sequence[VssSignal]") -> SignalRule:
    """The rule with its bound in the signal's unit, where it was given in that of these VSS paths."""
    if not paths or not rule.max_error or isinstance(rule.max_error, str):
        return rule
    scales = []
    for path in paths:
        if path.line is None:
            own = names.signals[number][0]
            raise InputError(place, f"{path.path} is no line of its signal", f"name {own} to bound its error")
        scales.append(abs(path.line[0]))
    bound = math.nextafter(rule.max_error / max(scales), 0.0) if max(scales) else 0.0
    return msgspec.structs.replace(rule, max_error=bound)


def _rule(
    place: str, rule: SignalRule, name: str, signal: Signal, is_glob: bool, none: tuple[tuple[int, int], ...]
) -> Rule:
    """none: ranges of raw values that say there is no value."""
    samples = [item for item in set(rule.keep) if item in KEEP_BITS]
    if rule.filter == "histogram" or (rule.filter == "window" and not samples):
        return DROPPED  # summaries alone
    bound = _max_error(f"{place}.max_error", rule.max_error, name, signal)
    labels: tuple[Exact, ...] = (*sorted(signal.labels), *none) if not signal.is_float else ()
    kind: str = rule.filter
    if kind == "curvelog" and signal.labels and is_glob and len(signal.labels) > 2:
        kind = "change"  # a glob over analogue signals meets discrete ones: no line through labels
        bound = 0.0
    if kind == "timebased":
        kind = "window"
    keep = sum(KEEP_BITS[item] for item in samples)
    return (
        kind,
        bound,
        round((rule.period_s or 0) * 1e6),
        round((rule.max_hold_s or 0) * 1e6),
        KEEP_BITS["last"] if rule.filter == "timebased" else keep,
        labels,
        signal.factor < 0,
    )


def _max_error(place: str, value: float | str, name: str, signal: Signal) -> float:
    """The bound in raw units, never more than what was asked for."""
    if isinstance(value, str):
        percent = re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)
        if percent is None:
            raise InputError(place, f"{value!r} is no error bound", 'a number, or a part of the range as in "0.1%"')
        try:
            share = float(percent[1]) / 100
        except ValueError as error:
            raise InputError(place, f"{value!r} is no error bound", 'for example "0.1%"') from error
        value = share * _range(place, name, signal)
    if not math.isfinite(value) or value < 0:
        raise InputError(place, f"{value} is no error bound", "0 (exact) or more")
    if value == 0 or signal.factor == 0:
        return 0.0
    from fractions import Fraction  # here: it takes memory

    exact = Fraction(value) / abs(Fraction(str(signal.factor)))
    bound = float(exact)
    return bound if Fraction(bound) <= exact else math.nextafter(bound, 0.0)


def _range(place: str, name: str, signal: Signal) -> float:
    """What the database says, else what the bits can say."""
    if signal.minimum is not None and signal.maximum is not None and signal.maximum > signal.minimum:
        return float(signal.maximum - signal.minimum)
    if signal.is_float:
        raise InputError(place, f"{name} is a float without a range in the database", "give a number")
    low, high = raw_range(signal)
    return float((high - low) * abs(signal.factor))


def _specificity(glob: str) -> tuple[bool, int, str]:
    return not any(sign in glob for sign in "*?["), sum(sign not in "*?[]" for sign in glob), glob


def _list(names: set[str]) -> str:
    return " and ".join(sorted(names))


def _microseconds(value: datetime | None) -> int | None:
    return None if value is None else round(value.timestamp() * 1e6)

"""How a campaign has the samples of a signal reduced: as its document says it, and as the kernel takes it."""

from typing import Annotated, Literal

import msgspec

Period = Annotated[float, msgspec.Meta(ge=0.001, le=86_400)]
Exact = int | tuple[int, int]  # a raw value, or a range of them
Rule = tuple[str, float, int, int, int, tuple[Exact, ...], bool]  # as cy_core.reduce.Reducer takes it


class SignalRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the samples of a signal are reduced.

    filter: every sample (default); change: those that differ from the last by more than max_error; curvelog: the
    ends of lines that pass every sample within max_error; timebased: the last of each period_s; window: of each
    period_s those in keep, and its mean, count, sum; histogram: how long the value was in each of classes (ascending
    edges, or labels), in each period_s or in the event. max_error: physical, or "0.1%" of the signal's range.
    max_hold_s: a sample at the latest so long after the last (change, curvelog); a value counts so long (histogram).
    """

    filter: Literal["every", "change", "curvelog", "timebased", "window", "histogram"] = "every"
    max_error: float | str = 0.0
    period_s: Period | None = None
    max_hold_s: Period | None = None
    keep: list[Literal["first", "last", "min", "max", "mean", "count", "sum"]] = []
    classes: list[float | str] = []

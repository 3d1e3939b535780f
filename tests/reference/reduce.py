"""Slow twins of the reductions: one signal, plain lists of (time_us, raw), from docs/campaigns.md."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

Samples = list[tuple[int, int]]


def change(samples: Samples, bound: Fraction, hold_us: int, labels: Sequence[int]) -> Samples:
    kept: Samples = []
    for time_us, raw in samples:
        if kept:
            last_us, last = kept[-1]
            is_same = raw == last or (abs(raw - last) <= bound and raw not in labels and last not in labels)
            if is_same and not (hold_us and time_us - last_us >= hold_us):
                continue
        kept.append((time_us, raw))
    return kept


def window(samples: Samples, span_us: int, keep: set[str], negative: bool, now_us: int, last: bool) -> Samples:
    cells: dict[int, Samples] = {}
    current = None
    for sample in samples:
        cell = sample[0] // span_us
        current = cell if current is None else max(current, cell)
        cells.setdefault(current, []).append(sample)
    kept: Samples = []
    for cell, inside in cells.items():
        if cell == current and not last and now_us // span_us <= cell:
            continue
        sign = -1 if negative else 1
        picks = []
        if "first" in keep:
            picks.append(inside[0])
        if "min" in keep:
            picks.append(min(inside, key=lambda sample: sign * sample[1]))
        if "max" in keep:
            picks.append(max(inside, key=lambda sample: sign * sample[1]))
        if "last" in keep:
            picks.append(inside[-1])
        kept += sorted(set(picks))
    return kept


def error_of_lines(samples: Samples, kept: Samples) -> Fraction:
    """The largest distance of a sample from the line between the kept ones around it, exactly."""
    worst = Fraction(0)
    times = [time_us for time_us, _ in kept]
    for time_us, raw in samples:
        after = next(place for place, at in enumerate(times) if at >= time_us)
        t1, v1 = kept[after]
        if t1 == time_us:
            worst = max(worst, Fraction(abs(raw - v1)))
            continue
        t0, v0 = kept[after - 1]
        line = v0 + Fraction(v1 - v0) * (time_us - t0) / (t1 - t0)
        worst = max(worst, abs(raw - line))
    return worst


def error_of_hold(samples: Samples, kept: Samples) -> int:
    """The largest distance of a sample from the last kept one."""
    worst, place = 0, 0
    for time_us, raw in samples:
        while place + 1 < len(kept) and kept[place + 1][0] <= time_us:
            place += 1
        worst = max(worst, abs(raw - kept[place][1]))
    return worst


class Period(NamedTuple):
    """A row of a summary; dwell has a time in us for each class."""

    start_us: int
    count: int
    total: Fraction
    numbers: int
    dwell: list[int]


def summary(
    samples: Samples,
    class_of: Callable[[int], int],
    classes: int,
    is_number: Callable[[int], bool],
    span_us: int,
    hold_us: int,
    now_us: int,
    last: bool,
) -> list[Period]:
    """Of samples in the order of time: each value holds until the next, or for hold_us; then by periods."""
    start_us = samples[0][0]
    hold_us = min(hold_us or 1 << 60, span_us or 1 << 60)
    held = []
    for number, (time_us, raw) in enumerate(samples):
        until = samples[number + 1][0] if number + 1 < len(samples) else now_us
        held.append((time_us, max(time_us, min(until, time_us + hold_us, now_us)), class_of(raw)))
    cell = (lambda time_us: time_us // span_us) if span_us else (lambda time_us: 0)
    cells = {cell(time_us) for time_us, _ in samples}
    if classes:
        # A value that holds beyond the end of its period begins the next one, if that has begun.
        holding = [
            (at, min(at + hold_us, samples[n + 1][0] if n + 1 < len(samples) else 1 << 60))
            for n, (at, _) in enumerate(samples)
        ]
        cells |= {cell(at) + 1 for at, end in holding if span_us and end > (cell(at) + 1) * span_us <= now_us}
    found = []
    for number in sorted(cells):
        begin, end = (number * span_us, (number + 1) * span_us) if span_us else (start_us, 1 << 62)
        if now_us < end and not last:
            continue
        inside = [raw for time_us, raw in samples if cell(time_us) == number]
        numbers = [raw for raw in inside if is_number(raw)]
        dwell = [0] * classes
        for first, until, place in held if classes else ():
            dwell[place] += max(0, min(until, end) - max(first, begin))
        found.append(Period(begin, len(inside), Fraction(sum(numbers)), len(numbers), dwell))
    return found

"""Slow twins of the reductions: one signal, plain lists of (time_us, raw), from docs/campaigns.md."""

from collections.abc import Sequence
from fractions import Fraction

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

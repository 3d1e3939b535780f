"""The plan as one HTML file without scripts or anything from elsewhere: figures, triggers on the time line, bytes by
signal, and of each signal what was there against what the cloud will see, with the bound. Light and dark.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape

from edge.plan import CampaignPlan, Plan
from edge.plan_trace import CampaignTrace, Point, Trace, Traces

WIDTH, LEFT, RIGHT = 760, 78, 10
MOST_BARS = 12
MOST_DOTS = 250
At = Callable[..., tuple[float, float]]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5b6577; --line: #d8dde6; --paper: #fff; --panel: #f5f7fa;
  --seen: #9aa7bd; --kept: #0b63c5; --band: #0b63c52e; --hit: #c2410c; --bar: #3b82c4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --soft: #98a2b5; --line: #333b4a; --paper: #14181f;
  --panel: #1c222c; --seen: #66728a; --kept: #6db3ff; --band: #6db3ff33; --hit: #fb923c; --bar: #4f8fcf } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  padding: 24px 16px; max-width: 820px }
h1 { font-size: 1.5em; margin: 0 }
h2 { font-size: 1.2em; margin: 2.2em 0 .3em; border-top: 1px solid var(--line); padding-top: 1em }
h3 { font-size: .95em; margin: 1.2em 0 .2em }
p, td, th, summary, small { color: var(--soft) }
b { color: var(--ink) }
small { font-weight: normal; display: block }
table { border-collapse: collapse; font-size: .88em; width: 100% }
th, td { text-align: right; padding: 3px 8px; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left }
svg { display: block; width: 100%; height: auto; background: var(--panel); border-radius: 6px }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
.wide { overflow-x: auto }
.seen { stroke: var(--seen); fill: none; stroke-width: 3; stroke-linejoin: round }
.kept { stroke: var(--kept); fill: none; stroke-width: 1.2 }
.dot { fill: var(--kept) }
.band, .span { fill: var(--band) }
.hit { stroke: var(--hit); stroke-width: 1.5 }
.bar { fill: var(--bar) }
.grid { stroke: var(--line) }
.key i { display: inline-block; width: 18px; margin: 0 6px 3px 14px; border-top: 3px solid }
"""
KEY = {
    "on the bus": "var(--seen)",
    "what the cloud will see": "var(--kept)",
    "its bound, or what is collected": "var(--band); border-width: 9px",
    "trigger": "var(--hit)",
}


def html(traces: Traces) -> str:
    """Everything that came from outside is escaped."""
    plan = traces.plan
    body = [
        f"<h1>Plan of {_list(campaign.campaign for campaign in plan.campaigns)}</h1>",
        f"<p>{plan.frames:,} frames in {plan.seconds:,.1f} s of {_list(plan.logs)}</p>",
        _totals(plan),
        '<p class="key">'
        + "".join(f'<i style="border-color: {color}"></i>{what}' for what, color in KEY.items())
        + "</p>",
        *(_campaign(trace, traces) for trace in traces.campaigns.values()),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>Plan</title><style>{STYLE}</style>'
    )
    whole = "\n".join(body)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{whole}\n</body></html>\n'


def _totals(plan: Plan) -> str:
    rows = [
        ("recorded", f"{plan.bytes:,} bytes", f"{plan.units:,} units"),
        ("a month, a vehicle", f"{plan.mb_per_month:,.1f} MB", f"{plan.units_per_month:,.0f} units"),
        ("a month, the fleet", f"{plan.fleet_mb_per_month:,.1f} MB", f"{plan.fleet_units_per_month:,.0f} units"),
    ]
    if plan.cost_per_month is not None:
        rows.append(("a month, the fleet, at your prices", f"{plan.cost_per_month:,.2f}", ""))
    rows.append(("memory of the ring", f"{plan.ring_bytes:,} bytes", ""))
    return _table(["all campaigns", "volume", "of 4,096 bytes"], rows)


def _campaign(trace: CampaignTrace, traces: Traces) -> str:
    plan = trace.plan
    parts = [
        f"<h2>{escape(plan.campaign)}</h2>",
        f"<p>Priority {plan.priority}. <b>{plan.samples:,}</b> of {plan.samples_seen:,} samples, "
        f"<b>{plan.bytes:,}</b> bytes in {plan.blocks:,} blocks, <b>{plan.units:,}</b> units; "
        f"a month <b>{plan.mb_per_month:,.2f} MB</b> and "
        f"{plan.units_per_month:,.0f} units a vehicle.{_events(trace)}</p>",
        _time_line(trace, traces),
        "<h3>Bytes by signal, each coded alone</h3>",
        _bytes(plan),
        *(_signal(own, traces, trace.spans) for own in trace.signals.values()),
        _signals(plan),
    ]
    return "\n".join(parts)


def _events(trace: CampaignTrace) -> str:
    plan = trace.plan
    if not trace.is_event:
        return ""
    counts = {
        "made longer": plan.events_extended,
        "not whole": plan.events_cut,
        "over the limit": plan.events_over_limit,
    }
    more = [f"{count:,} {what}" for what, count in counts.items() if count]
    said = f" {len(plan.events):,} events" + (f" ({', '.join(more)})" if more else "") + "."
    times = ", ".join(escape(at) for at in plan.events[:MOST_BARS])
    return said + (f"<br>{times}{', …' if len(plan.events) > MOST_BARS else ''}" if times else "")


def _signals(plan: CampaignPlan) -> str:
    rows = [
        (
            f"{signal.bus}.{signal.signal}", signal.filter, f"{signal.samples:,} of {signal.samples_seen:,}",
            f"{signal.bytes_alone:,}", f"{signal.units:,.2f}",
            "" if signal.max_error is None else f"{signal.max_error:.4g}",
            "" if signal.bound is None else f"{signal.bound:.4g}",
        )
        for signal in plan.signals
    ]  # fmt: skip
    head = ["signal", "filter", "samples", "bytes alone", "units", "largest error", "allowed"]
    return f"<details><summary>All {len(rows):,} signals</summary>{_table(head, rows)}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="wide"><table><tr>{top}</tr>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


# -- drawings; x and y are of the picture


def _x(at_s: float, traces: Traces) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, at_s / traces.seconds))


def _svg(height: int, label: str, parts: Iterable[str]) -> str:
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{inside}</svg>'


def _seconds_axis(height: int, traces: Traces) -> Iterable[str]:
    for part in range(5):
        x = _x(part * traces.seconds / 4, traces)
        anchor = "start" if part == 0 else "end" if part == 4 else "middle"
        yield f'<text x="{x:.1f}" y="{height - 4}" text-anchor="{anchor}">{part * traces.seconds / 4:,.4g} s</text>'
    for start in traces.starts[1:]:
        x = _x(start, traces)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 16}" stroke-dasharray="3 3"/>'


def _time_line(trace: CampaignTrace, traces: Traces) -> str:
    spans = (
        f'<rect class="span" x="{_x(first, traces):.1f}" y="8" height="18" '
        f'width="{max(1.0, _x(last, traces) - _x(first, traces)):.1f}"/>'
        for first, last in trace.spans
    )
    hits = (f'<path class="hit" d="M{_x(at, traces):.1f} 4V30"/>' for at in trace.triggers)
    parts = ['<text x="6" y="21">collected</text>', *spans, *hits, *_seconds_axis(50, traces)]
    return _svg(50, f"time line of {trace.plan.campaign}: {len(trace.triggers)} triggers", parts)


def _bytes(plan: CampaignPlan) -> str:
    shown = [signal for signal in plan.signals if signal.bytes_alone][:MOST_BARS]
    return _bars(
        [(signal.signal, signal.bytes_alone, f"{signal.bytes_alone:,}") for signal in shown], "bytes by signal"
    )


def _bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    if not rows:
        return "<p>nothing was collected</p>"
    most, left = max(size for _, size, _ in rows) or 1.0, 260
    parts = []
    for number, (name, size, said) in enumerate(rows):
        y, width = 6 + 18 * number, (WIDTH - left - 90) * size / most
        parts.append(
            f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(name[-40:])}</text>'
            f'<rect class="bar" x="{left}" y="{y + 1}" height="12" width="{max(1.0, width):.1f}"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 11}">{escape(said)}</text>'
        )
    return _svg(10 + 18 * len(rows), label, parts)


def _signal(trace: Trace, traces: Traces, spans: Sequence[Sequence[float]]) -> str:
    plan, unit = trace.plan, f" {trace.signal.unit}" if trace.signal.unit else ""
    error = ""
    if plan.max_error is not None and plan.bound is not None:
        error = f", largest error {plan.max_error:.4g} of {plan.bound:.4g}{unit} allowed"
    said = f"{plan.filter}, {plan.samples:,} of {plan.samples_seen:,} samples, {plan.bytes_alone:,} bytes{error}"
    head = f"<h3>{escape(plan.signal)} <small>{escape(said)}</small></h3>"
    if trace.dwell:
        total = sum(trace.dwell.values()) or 1.0
        rows = [
            (f"{name}{unit if name[0] in '<[>' else ''}", size, f"{size:,.1f} s ({size / total:.0%})")
            for name, size in trace.dwell.items()
        ]
        return head + _bars(rows, f"time of {plan.signal} in each class")
    return head + _plot(trace, traces, spans)


def _plot(trace: Trace, traces: Traces, spans: Sequence[Sequence[float]], height: int = 150) -> str:
    curves = [part for curve in (trace.seen, trace.kept, trace.means) for part in curve.parts()]
    values = [point.value for part in curves for point in part]
    if not values:
        return "<p>nothing to draw</p>"
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or max(abs(high) * 0.1, 1.0)
    low, high = low - room, high + room
    bottom = height - 20

    def at(point: Point, shift: float = 0.0) -> tuple[float, float]:
        share = (point.value + shift - low) / (high - low)
        return _x(point.at_s, traces), 6 + (bottom - 6) * (1 - min(1.0, max(0.0, share)))

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
        for value in (low + room, (low + high) / 2, high - room)
        for _, y in [at(Point(0, value))]
    ]
    parts += [_line("seen", [at(point) for point in part], False) for part in trace.seen.parts()]
    is_step = trace.plan.filter == "change"
    kept, means = trace.kept.parts(), _held(trace.means.parts(), spans)
    kept = _held(kept, spans) if is_step else kept
    if trace.plan.bound:
        parts += [_band(part, at, trace.plan.bound, is_step) for part in kept]
    if not trace.plan.filter.startswith("window"):  # between whose samples nothing is known
        parts += [_line("kept", [at(point) for point in part], is_step) for part in kept]
    parts += [_line("kept", [at(point) for point in part], True) for part in means]
    dots = [at(point) for part in trace.kept.parts() for point in part]
    if len(dots) <= MOST_DOTS or trace.plan.filter.startswith("window"):
        parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>' for x, y in dots]
    return _svg(height, f"{trace.plan.signal} over time", [*parts, *_seconds_axis(height, traces)])


def _held(parts: Sequence[list[Point]], spans: Sequence[Sequence[float]]) -> list[list[Point]]:
    """The last value of a part holds to the end of what was collected."""
    made = []
    for part in parts:
        end_s = max((last for first, last in spans if first <= part[-1].at_s <= last), default=part[-1].at_s)
        made.append([*part, Point(end_s, part[-1].value)])
    return made


def _line(kind: str, places: Sequence[tuple[float, float]], steps: bool) -> str:
    return f'<path class="{kind}" d="{_way(places, steps)}"/>'


def _way(places: Sequence[tuple[float, float]], steps: bool) -> str:
    made = [f"M{places[0][0]:.1f} {places[0][1]:.1f}"]
    for x, y in places[1:]:
        made.append(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}")
    return "".join(made) if len(places) > 1 else made[0] + "h.1"


def _band(part: Sequence[Point], at: At, bound: float, steps: bool) -> str:
    upper = _stepped([at(point, bound) for point in part], steps)
    lower = _stepped([at(point, -bound) for point in part], steps)
    return f'<path class="band" d="{_way([*upper, *reversed(lower)], False)}Z"/>'


def _stepped(places: Sequence[tuple[float, float]], steps: bool) -> list[tuple[float, float]]:
    if not steps:
        return list(places)
    made = list(places[:1])
    for x, y in places[1:]:
        made += [(x, made[-1][1]), (x, y)]
    return made


def _tick(value: float) -> str:
    return escape(f"{value:,.6g}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(escape(name) for name in names)

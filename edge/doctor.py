"""Why is there no data? What the collector knows of itself, and the sentences a person needs.

Line, source ──describe──► plain document (getStatus, status-collector.json) ──explain──► sentences
"""

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from edge import fates
from edge.errors import InputError
from edge.line import Line
from edge.names import Names
from edge.source import Source
from edge.stream import Stream

STATUS_FILE = "status-collector.json"
SILENT_S = 2.0  # a bus without a frame for so long is called silent
NAMED = 8  # messages that are named one by one
FEW = 100  # frames: fewer say nothing
UNTOLD = ("frames", "last_us", "transport")
BUS_WORDS = {"unknown": "of no message", "segments": "parts of messages", "short": "too short", "dropped": "dropped"}
OLD_S = 30.0  # a status file of that age is of a collector that does not run


def describe(
    line: Line, source: Source, names: Names, refused: Mapping[str, str], held_s: float = 0.0
) -> dict[str, Any]:
    """Everything from frame to block, by bus and campaign. Times are UTC in microseconds.

    held_s: since when frames may have come that the line has not counted yet.
    """
    clock = source.clock
    offset_us = clock.utc_offset_us
    now_us = time.time_ns() // 1000 if source.live else line.traffic.clock_us + offset_us
    buses: dict[str, dict[str, Any]] = {}
    transport = line.assembler.counters()
    for number, name in enumerate(names.buses):
        counted = line.traffic.bus(number)._asdict()
        last_us = counted.pop("last_us")
        buses[name] = {
            **counted,
            "dropped": source.dropped.get(name, 0),
            "last_us": None if last_us is None else last_us + offset_us,
        }
        if number in transport:  # messages in several frames: J1939 transport protocol, fast packet, ISO-TP
            buses[name]["transport"] = dict(zip(("assembled", "failed", "stray"), transport[number], strict=True))
    return {
        "now_us": now_us,
        "counted_us": now_us - round(held_s * 1e6),
        "source": {"name": source.name, "problem": source.problem, "frames": source.position},
        "buses": buses,
        "ring": {
            "frames": len(line.ring),
            "bytes": line.ring.allocated_bytes,
            "limit_bytes": line.ring.limit_bytes,
            "crowded_frames": line.ring.crowded,
        },
        "campaigns": {
            name: _campaign(stream, line, names, now_us, offset_us) for name, stream in list(line.streams.items())
        },
        "refused": dict(refused),
    }


def _campaign(stream: Stream, line: Line, names: Names, now_us: int, offset_us: int) -> dict[str, Any]:
    selection = stream.selection
    silent, selected = _silent_messages(selection.keep, line, names)
    absent = [] if selection.is_event else _absent_signals(selection.keep, line)
    described: dict[str, Any] = {
        **msgspec.structs.asdict(stream.tally),
        "raw": selection.raw is not None,
        "messages": selected,
        "never_received": len(silent),
        "never_received_first": silent[:NAMED],
        "never_appeared": len(absent),
        "never_appeared_first": absent[:NAMED],
        "start_us": selection.start_us,
        "end_us": selection.end_us,
        "under_way": stream.until_us is not None,
    }
    if stream.condition is not None:
        described["condition"] = {
            "when": selection.campaign.when,
            "evaluated": stream.condition.evaluated,
            "true": stream.condition.true,
            "cooled_down": stream.condition.cooled,
            "operands": [
                {
                    "signal": names.signals[place][0],
                    "bus": names.signals[place][1].bus,
                    "value": value,
                    "age_s": None if seen_us is None else round((now_us - seen_us - offset_us) / 1e6, 3),
                    "samples": samples,
                }
                for place, value, seen_us, samples in stream.condition.state()
            ],
        }
    return described


def _silent_messages(keep: bytes, line: Line, names: Names) -> tuple[list[str], int]:
    """Messages that were selected and never received, and how many were selected."""
    silent: list[str] = []
    first = selected = 0
    for number, message in enumerate(line.decoder.manifest.messages):
        count = len(message.signals)
        if any(keep[first : first + count]):
            selected += 1
            if not line.traffic.message(number)[0]:
                silent.append(f"{message.bus}.{message.name}")
        first += count
    return silent, selected


def _absent_signals(keep: bytes, line: Line) -> list[str]:
    """Signals of messages that came, always without them: multiplexer pages, payloads that are too short.

    An event campaign decodes nothing until it fires, so this says nothing of one.
    """
    absent: list[str] = []
    place = 0
    for number, message in enumerate(line.decoder.manifest.messages):
        came = bool(line.traffic.message(number)[0])
        for signal in message.signals:
            if came and keep[place] and not line.signals_seen[place]:
                absent.append(f"{message.bus}.{message.name}.{signal.name}")
            place += 1
    return absent


def add_fates(status: Mapping[str, Any], folder: Path) -> None:
    """How many blocks of each campaign were sent and evicted, as the uplink beside the outbox says."""
    known = fates.load(folder)
    for name, campaign in status["campaigns"].items():
        campaign |= known.get(name, {})


def explain(status: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that keeps data from coming; none where all is well."""
    lines = [status["problem"]] if status.get("problem") else []
    source = status["source"]
    if source["problem"]:
        lines.append(f"source {source['name']}: {source['problem']}")
    if not source["frames"]:
        lines.append(f"source {source['name']} has not given a single frame yet")
    for name, bus in status["buses"].items():
        lines += [f"bus {name}: {said}" for said in _of_bus(bus, status["counted_us"])]
    for name, reason in status["refused"].items():
        lines.append(f"{name} is refused, and what was valid before goes on: {reason}")
    if not status["campaigns"]:
        lines.append("nothing is collected: there is no campaign")
    for name, campaign in status["campaigns"].items():
        lines += [f"campaign {name}: {said}" for said in _of_campaign(campaign, status)]
    ring = status["ring"]
    if ring["crowded_frames"]:
        lines.append(
            f"the ring of {ring['limit_bytes']:,} bytes was too small for the time that campaigns reach back: "
            f"{ring['crowded_frames']:,} frames went early; raise ring_bytes"
        )
    return lines


def _of_campaign(campaign: Mapping[str, Any], status: Mapping[str, Any]) -> Iterable[str]:
    now_us = status["now_us"]
    if campaign["start_us"] is not None and now_us < campaign["start_us"]:
        yield f"it starts at {_clock(campaign['start_us'], date=True)}"
        return
    if campaign["end_us"] is not None and now_us >= campaign["end_us"]:
        yield f"it ended at {_clock(campaign['end_us'], date=True)}"
        return
    if condition := campaign.get("condition"):
        yield from _of_condition(condition, campaign, status)
    if campaign["raw"] and not campaign["frames"] and "condition" not in campaign:
        yield "no frame that it names was ever received"
    if campaign["messages"] and campaign["never_received"] == campaign["messages"]:
        yield f"none of its {campaign['messages']} messages was ever received"
    elif campaign["never_received"]:
        named = ", ".join(campaign["never_received_first"])
        more = ", …" if campaign["never_received"] > NAMED else ""
        yield f"{campaign['never_received']} of its {campaign['messages']} messages were never received: {named}{more}"
    if campaign["never_appeared"]:
        named = ", ".join(campaign["never_appeared_first"])
        more = ", …" if campaign["never_appeared"] > NAMED else ""
        yield f"{campaign['never_appeared']} of its signals never appeared in messages that came: {named}{more}"
    if campaign.get("evicted"):
        yield (
            f"{campaign['evicted']:,} of its blocks left the outbox unsent, because it was full or they grew too old; "
            "raise BORDNETZ_OUTBOX_BYTES, or lower its priority's number"
        )
    if campaign["cut"]:
        yield f"{campaign['cut']} of its events are not whole: the collector stopped in them, or the ring was too small"
    if campaign["over_limit"]:
        yield f"{campaign['over_limit']} events were left out because of max_events_per_day"
    if campaign["out_of_time"]:
        yield f"its condition was true {campaign['out_of_time']} times outside of start and end"


def _of_condition(
    condition: Mapping[str, Any], campaign: Mapping[str, Any], status: Mapping[str, Any]
) -> Iterable[str]:
    silent = [operand for operand in condition["operands"] if not operand["samples"]]
    for operand in silent:
        bus = status["buses"][operand["bus"]]
        said = _silence(bus, status["counted_us"]) or "the bus carries other frames"
        yield f"{operand['signal']} was never received on {operand['bus']}; {said}"
    if silent or campaign["events"]:
        return
    values = ", ".join(
        f"{operand['signal']} is {_number(operand['value'])} ({operand['age_s']:.1f} s ago)"
        for operand in condition["operands"]
    )
    if not condition["true"]:
        yield f"its condition was looked at {condition['evaluated']:,} times and never true; {values}"
    elif condition["cooled_down"] == condition["true"]:
        yield f"its condition was true {condition['true']} times, each within cooldown_s"


def _of_bus(bus: Mapping[str, Any], counted_us: int) -> Iterable[str]:
    """Silence, and what is lost on it. Counters that a healthy bus has too are in no sentence: see bus_lines."""
    if said := _silence(bus, counted_us):
        yield said
    if bus["dropped"]:
        yield f"the kernel dropped {bus['dropped']:,} frames, because the collector did not read them in time"
    if bus["error"]:
        yield f"{bus['error']:,} error frames: look at its wiring, termination and bit rate"
    if bus["frames"] >= FEW and bus["unknown"] == bus["frames"]:
        yield f"none of its {bus['frames']:,} frames is in the manifest: is it compiled from this bus's databases?"
    if bus["short"] > max(FEW, bus["frames"] / 100):
        yield f"{bus['short']:,} of {bus['frames']:,} frames are shorter than the manifest says"
    transport = bus.get("transport", {"assembled": 0, "failed": 0})
    if transport["failed"] > max(FEW, transport["assembled"]):
        yield f"{transport['failed']:,} messages in several frames were not whole, {transport['assembled']:,} were"


def bus_lines(status: Mapping[str, Any]) -> list[str]:
    """A line for each bus, with whatever it has counted."""
    lines = []
    for name, bus in status["buses"].items():
        counted = {**bus, **{f"messages in segments {key}": n for key, n in bus.get("transport", {}).items()}}
        told = [f"{n:,} {BUS_WORDS.get(key, key)}" for key, n in counted.items() if key not in UNTOLD and n]
        lines.append(f"bus {name}: {bus['frames']:,} frames" + "".join(f", {text}" for text in told))
    return lines


def _silence(bus: Mapping[str, Any], counted_us: int) -> str:
    """What is wrong with a bus; empty where nothing is."""
    if not bus["frames"]:
        return "the bus has never carried a frame"
    if counted_us - bus["last_us"] > SILENT_S * 1e6:
        return f"the bus is silent since {_clock(bus['last_us'])}"
    return ""


def _clock(time_us: int, date: bool = False) -> str:
    moment = datetime.fromtimestamp(time_us / 1e6, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%SZ" if date else "%H:%M:%S")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:g}"


def write_status(folder: Path, status: Mapping[str, Any]) -> None:
    """Leave the status beside the outbox, for `bordnetz doctor`. Raises OSError."""
    draft = folder / f"{STATUS_FILE}.draft"
    draft.write_text(json.dumps({"written_us": time.time_ns() // 1000, **status}))
    draft.replace(folder / STATUS_FILE)


def examine(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The collector's last status in an outbox directory, and what is to be said of it.

    Raises InputError: there is no status, or it is not readable.
    """
    path = folder / STATUS_FILE
    try:
        status = json.loads(path.read_text())
        add_fates(status, folder)
        lines = explain(status)
    except FileNotFoundError as error:
        raise InputError(
            path, "is not there: no collector has run on this outbox", "give the outbox directory"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(path, f"is no status of a collector ({error})", "start the collector again") from error
    age_s = time.time() - status["written_us"] / 1e6
    if status.get("state") == "finished":
        lines.insert(0, "the source has come to its end, and all of it is stored")
    elif age_s > OLD_S:
        lines.insert(0, f"the collector does not run: it was heard last {age_s:,.0f} s ago")
    return status, lines

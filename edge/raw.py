"""Raw frames that a campaign names: `BUS:WHAT`, globs over buses and messages, compiled to rules of cy_core/pick.

    can0:*              every frame of can0, also those that no database describes, error frames and remote frames
    can1:0x1A0          an identifier; of 11 bits up to three hex digits, of 29 bits with more
    can1:pgn:65265      a parameter group of J1939 or NMEA 2000, from anybody
    can0:BRAKE*         messages of the manifest, with all frames that carry them

What a message is, when it comes in several frames: its segments. Frames of messages that hold an identifier of the
vehicle are withheld, and so is the transport of such a message, unless an entry names it.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cy_core.pick import FramePicker
from edge.errors import InputError
from edge.manifest import Message, pgn_of
from edge.names import Names, closest

MOST_ENTRIES = 1000
EXTENDED = 0x80000000
EXACT = 0xBFFFFFFF  # all but the flag of remote frames
WITHHELD, KEPT, NAMED = 0, 1, 2
AS_IN = 'as in "can0:*", "can0:0x1A0", "can0:BRAKE*" or "can1:pgn:65265"'

Rule = tuple[int, int, int, int]  # as cy_core.pick.FramePicker takes it


class RawRules(NamedTuple):
    rules: tuple[Rule, ...]
    transports: tuple[int, ...]

    def picker(self) -> FramePicker:
        return FramePicker(self.rules, self.transports)


def compile_frames(place: str, entries: Iterable[str], names: Names, is_private: Callable[[str], bool]) -> RawRules:
    """Raises InputError: the entry, what is wrong with it, and the closest right name."""
    entries = list(entries)
    if len(entries) > MOST_ENTRIES:
        raise InputError(place, f"has {len(entries)} entries", "use globs")
    messages = list({(message.bus, message.name): message for _, message, _ in names.signals}.values())
    tagged = {(m.bus, m.name) for number, (_, m, _) in enumerate(names.signals) if names.is_tagged(number)}
    private = [m for m in messages if (m.bus, m.name) in tagged or _is_private(m, is_private)]
    buses = names.buses
    general: list[Rule] = []
    named: list[Rule] = []
    for number, entry in enumerate(entries):
        here = f"{place}[{number}]"
        glob, _, what = entry.partition(":")
        on = [bus for bus in buses if fnmatch.fnmatchcase(bus, glob)]
        if not what:
            raise InputError(here, f"{entry!r} says no frames", AS_IN)
        if not on:
            raise InputError(here, f"{glob!r} is no bus of the manifest", f"there are {', '.join(buses)}")
        if what == "*":
            general += [(buses.index(bus), 0, 0, KEPT) for bus in on]
        elif (found := _identifier(here, what)) is not None:
            named += [(buses.index(bus), *found, NAMED) for bus in on]
        else:
            own = [m for m in messages if m.bus in on and fnmatch.fnmatchcase(m.name, what)]
            if not own:
                known = [m.name for m in messages if m.bus in on]
                raise InputError(here, f"{what!r} matches no message of {' or '.join(on)}", closest(what, known))
            is_exact = what in (m.name for m in own) or is_private(what)
            if not is_exact and all(m in private for m in own):
                raise InputError(here, "matches nothing but identifiers of the vehicle", f"name {own[0].name}")
            (named if is_exact else general).extend((*_rule(m, names), NAMED if is_exact else KEPT) for m in own)
    withheld = [(*_rule(message, names), WITHHELD) for message in private]
    transports = tuple(sorted({buses.index(message.bus) for message in messages if message.is_by_pgn}))
    return RawRules((*general, *withheld, *named), transports)


def _rule(message: Message, names: Names) -> tuple[int, int, int]:
    """Bus, mask and value of the frames that carry it."""
    found = _group(message.pgn) if message.is_by_pgn else (EXACT, message.id | (EXTENDED if message.extended else 0))
    return names.buses.index(message.bus), *found


def _group(pgn: int) -> tuple[int, int]:
    """SAE J1939-21: below PDU format 240 the low byte of the identifier's group is an address."""
    return 0xA0000000 | (0x03FFFF00 if pgn >> 8 & 0xFF >= 240 else 0x03FF0000), EXTENDED | pgn << 8


def _identifier(place: str, what: str) -> tuple[int, int] | None:
    """Mask and value of an identifier or a parameter group; None: it is a name."""
    if what.lower().startswith("pgn:"):
        try:
            pgn = int(what[4:], 0)
        except ValueError:
            pgn = -1
        if not 0 <= pgn <= 0x3FFFF or pgn_of(pgn << 8) != pgn:
            raise InputError(place, f"{what[4:]!r} is no parameter group", 'as in "can1:pgn:65265"')
        return _group(pgn)
    found = re.fullmatch(r"0[xX]([0-9A-Fa-f]+)", what)
    if found is None:
        return None
    is_extended, value = len(found[1]) > 3, int(found[1], 16)
    if value > (0x1FFFFFFF if is_extended else 0x7FF):
        limit = "29 bits: at most 0x1FFFFFFF" if is_extended else "11 bits: at most 0x7FF; of 29 with more digits"
        raise InputError(place, f"{what} is no identifier", limit)
    return EXACT, value | (EXTENDED if is_extended else 0)


def _is_private(message: Message, is_private: Callable[[str], bool]) -> bool:
    return any(is_private(f"{message.name}.{signal.name}") for signal in message.signals)

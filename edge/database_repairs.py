"""What the text of a dirty database needs before a parser takes it: small corrections, and each says so.

    text ──► tidy ──► parser ──error──► correct ──► text, corrections ──► parser …

tidy changes nothing that means anything. correct answers one error of the parser with the smallest change that
can be explained to the owner of the file, or with None; it blanks and adds, so that line numbers stay true.
"""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

# What a DBC string is, as cantools reads it.
STRING = r'"(?:\\"|[^"])*?"'
EXTENDED, EXTENDED_MASK = 0x80000000, 0x1FFFFFFF
INDEPENDENT_SIGNALS = 0xC0000000  # Vector's pseudo-message for signals that are in no message
# Statements that end with a semicolon; none of them says which bits are a signal, except SIG_VALTYPE_ and SG_MUL_VAL_.
CLOSED = (
    "CM_|VAL_TABLE_|VAL_|BA_DEF_DEF_REL_|BA_DEF_DEF_|BA_DEF_REL_|BA_DEF_|BA_REL_|BA_|SIG_VALTYPE_|SIG_GROUP_|"
    "SG_MUL_VAL_|BO_TX_BU_|EV_|ENVVAR_DATA_|EV_DATA_|SGTYPE_|SIG_TYPE_REF_|SIGTYPE_VALTYPE_|CAT_DEF_|CAT_|FILTER"
)
STATEMENT = re.compile(rf"{STRING}|^[ \t]*({CLOSED}|BO_|SG_|BU_|BS_|NS_|VERSION)\b", re.MULTILINE | re.DOTALL)


class Correction(NamedTuple):
    """line and message are 0 and empty where it concerns neither."""

    line: int
    message: str
    problem: str
    what_was_done: str


class Statement(NamedTuple):
    keyword: str
    start: int
    end: int


def tidy(text: str, suffix: str) -> str:
    """The same database in the dialect that cantools reads."""
    text = text.replace("\r\n", "\n")
    if suffix != ".dbc":
        return text
    text = re.sub(rf"{STRING}|//[^\n]*|/\*.*?\*/", _without_comment, text, flags=re.DOTALL)
    # The list of keywords under NS_ and the bit timing in BS_ say nothing about signals.
    text = re.sub(r"^[ \t]*NS_[ \t]*:[ \t]*(?:\n[ \t]*\w*[ \t]*$)*", _blanked, text, flags=re.MULTILINE)
    return re.sub(r"^([ \t]*BS_[ \t]*:)[ \t\d:,]+$", r"\1", text, flags=re.MULTILINE)


def correct(text: str, suffix: str, error: str) -> tuple[str, list[Correction]] | None:
    """The text without the cause of this error of the parser; None if it is not known how."""
    rules = DBC_RULES if suffix == ".dbc" else KCD_RULES if suffix == ".kcd" else {}
    for pattern, rule in rules.items():
        if found := re.search(pattern, error):
            corrected, corrections = rule(text, found)
            return (corrected, corrections) if corrections else None
    return None


def line_of_message(text: str, suffix: str, name: str, dbc_id: int) -> int:
    """Where a message is defined; 0 if that cannot be told."""
    quoted = re.escape(name)
    patterns = {
        # Where a message has a long name, the identifier alone must do.
        ".dbc": (rf"^[ \t]*BO_\s+{dbc_id}\s+{quoted}\b", rf"^[ \t]*BO_\s+{dbc_id}\s"),
        ".kcd": (rf"<Message\b[^>]*\sname=\"{quoted}\"",),
        ".sym": (rf"^\[{quoted}\]",),
        ".arxml": (rf"<SHORT-NAME>{quoted}</SHORT-NAME>",),
    }[suffix]
    found = next((found for pattern in patterns if (found := re.search(pattern, text, re.MULTILINE))), None)
    return _line(text, found.start()) if found else 0


def _drop_at_error(text: str, error: re.Match[str]) -> tuple[str, list[Correction]]:
    """Close the statement before the error if its semicolon is missing; else drop the statement that has the error."""
    line, column = int(error[1]), int(error[2])
    at = sum(len(row) + 1 for row in text.split("\n")[: line - 1]) + column - 1
    statements = list(_statements(text))
    place = next((n for n, statement in enumerate(statements) if statement.start <= at < statement.end), None)
    if place is None:
        return text, []
    if place and statements[place].start == at and re.fullmatch(CLOSED, statements[place - 1].keyword):
        before = statements[place - 1]
        body = text[before.start : before.end].rstrip()
        if not body.endswith(";"):
            end = before.start + len(body)
            done = [Correction(_line(text, before.start), "", f"{before.keyword} does not end with ;", "ended there")]
            return text[:end] + ";" + text[end:], done
    return _drop(text, statements, place, "cannot be read")


def _drop_unused(text: str, error: re.Match[str]) -> tuple[str, list[Correction]]:
    """VAL_ or SIG_VALTYPE_ of signals that are not there."""
    corrections = []
    for number, name in re.findall(rf"{error[1]} (\d+) (\S+)", error.string):
        for statement in list(_statements(text)):
            if statement.keyword == error[1] and text[statement.start :].split(None, 3)[1:3] == [number, name]:
                problem = f"{error[1]} of a signal {name} that message {number} does not have"
                corrections.append(Correction(_line(text, statement.start), "", problem, "left out"))
                text = _blank(text, statement.start, statement.end)
    return text, corrections


def _mark_extended(text: str, error: re.Match[str]) -> tuple[str, list[Correction]]:
    """Set bit 31 on identifiers that only make sense as 29-bit ones, wherever they are named."""
    wrong: dict[str, str] = {}
    corrections = []
    for found in re.finditer(r"^[ \t]*BO_\s+(\d+)\s+(\w+)", text, re.MULTILINE):
        given = int(found[1])
        if given != INDEPENDENT_SIGNALS and (given & 0x60000000 or 0x7FF < given < EXTENDED):
            wrong[found[1]] = str(given & EXTENDED_MASK | EXTENDED)
            problem = f"identifier {given:X} is longer than 11 bits and not marked as a 29-bit one"
            done = f"taken as the 29-bit identifier {given & EXTENDED_MASK:X}"
            corrections.append(Correction(_line(text, found.start(1)), found[2], problem, done))

    def marked(found: re.Match[str]) -> str:
        return found[0] if found[2] is None else found[1] + wrong.get(found[2], found[2])

    named = r"((?:\b(?:BO_|SG_)|^[ \t]*(?:VAL_|SIG_VALTYPE_|SG_MUL_VAL_|SIG_GROUP_|BO_TX_BU_))\s+)(\d+)"
    return re.sub(rf"{STRING}|{named}", marked, text, flags=re.MULTILINE | re.DOTALL), corrections


def _drop_signal(text: str, error: re.Match[str]) -> tuple[str, list[Correction]]:
    statements = list(_statements(text))
    message = ""
    for place, statement in enumerate(statements):
        words = re.findall(r"\w+", text[statement.start : statement.end])
        if statement.keyword == "BO_":
            message = words[2] if len(words) > 2 else ""
        elif statement.keyword == "SG_" and (words[1], message) == (error[1], error[2]):
            return _drop(text, statements, place, f"signal {error[1]} has no bits")
    return text, []


def _mark_kcd_extended(text: str, error: re.Match[str]) -> tuple[str, list[Correction]]:
    corrections = []

    def marked(found: re.Match[str]) -> str:
        number = re.search(r"\sid=\"(0[xX][0-9a-fA-F]+|\d+)\"", found[0])
        if number is None or int(number[1], 0) <= 0x7FF or "format=" in found[0]:
            return found[0]
        name = re.search(r"\sname=\"([^\"]*)\"", found[0])
        problem = f"identifier {number[1]} is longer than 11 bits and not marked as a 29-bit one"
        corrections.append(
            Correction(_line(text, found.start()), name[1] if name else "", problem, "taken as a 29-bit identifier")
        )
        return found[0].replace("<Message", '<Message format="extended"', 1)

    return re.sub(r"<Message\b[^>]*>", marked, text), corrections


Rule = Callable[[str, re.Match[str]], tuple[str, list[Correction]]]

DBC_RULES: dict[str, Rule] = {
    r"nvalid syntax at line (\d+), column (\d+)": _drop_at_error,
    r"unused (VAL_|SIG_VALTYPE_) entries": _drop_unused,
    r"frame id 0x[0-9a-f]+ is more than (?:11|29) bits": _mark_extended,
    r"The signal (\S+) length \S+ is not greater than 0 in message (\S+)\.": _drop_signal,
}
KCD_RULES: dict[str, Rule] = {r"Standard frame id 0x[0-9a-f]+ is more than 11 bits": _mark_kcd_extended}


def _statements(text: str) -> Iterator[Statement]:
    starts = [(found[1], found.start(1)) for found in STATEMENT.finditer(text) if found[1]]
    for (keyword, start), (_, end) in pairwise([*starts, ("", len(text))]):
        yield Statement(keyword, start, end)


def _drop(text: str, statements: list[Statement], place: int, problem: str) -> tuple[str, list[Correction]]:
    """Without that statement; a BO_ takes its signals along."""
    owner = place
    while owner and statements[owner].keyword == "SG_":
        owner -= 1
    first, last = statements[place], place
    while first.keyword == "BO_" and last + 1 < len(statements) and statements[last + 1].keyword == "SG_":
        last += 1
    words = re.findall(r"\w+", text[statements[owner].start : statements[owner].end])
    message = words[2] if statements[owner].keyword == "BO_" and len(words) > 2 else ""
    shown = " ".join(text[first.start : first.end].split())[:60]
    correction = Correction(_line(text, first.start), message, f"{problem}: {shown}", "left out")
    return _blank(text, first.start, statements[last].end), [correction]


def _blank(text: str, start: int, end: int) -> str:
    return text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]


def _blanked(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def _without_comment(found: re.Match[str]) -> str:
    return found[0] if found[0].startswith('"') else _blanked(found)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1

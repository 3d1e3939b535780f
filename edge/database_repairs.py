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
    for pattern, rule in RULES[suffix].items():
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


def _as_sym_6(text: str, error: re.Match[str]) -> tuple[str, list[Correction]]:
    """SYM 5.0 says the same in other words, but for names with blanks, which 6.0 cannot have."""
    version = re.search(r"^FormatVersion=5\.0", text, re.MULTILINE)
    if version is None:
        return text, []
    corrections = [Correction(_line(text, version.start()), "", "is of format 5.0", "read as 6.0")]
    text = re.sub(r"^FormatVersion=5\.0", "FormatVersion=6.0", text, flags=re.MULTILINE)
    text = re.sub(r"^enum[ \t]+", "Enum=", text, flags=re.MULTILINE)
    text = re.sub(r"^DLC=", "Len=", text, flags=re.MULTILINE)

    def joined(found: re.Match[str]) -> str:
        name = "_".join(found[2].split())
        problem = f"the name {found[2]!r} has a blank"
        corrections.append(Correction(_line(text, found.start()), "", problem, f"called {name}"))
        return found[1] + name

    kinds = "unsigned|signed|bit|char|string|float|double|raw"
    return re.sub(
        rf"^(Var=)(\w+(?:[ \t]+\w+)+?)(?=[ \t]+(?:{kinds})[ \t]+\d)", joined, text, flags=re.MULTILINE
    ), corrections


def _drop_empty_multiplexer(text: str, error: re.Match[str]) -> tuple[str, list[Correction]]:
    """A multiplexer of no bits selects nothing: what follows it is always there."""
    corrections = []

    def dropped(found: re.Match[str]) -> str:
        problem = f"multiplexer {error[1]} has no bits"
        done = "left out; its signals are always there"
        corrections.append(Correction(_line(text, found.start()), error[2], problem, done))
        return _blanked(found)

    return re.sub(rf"^Mux={re.escape(error[1])}[ \t]+\d+,0[ \t].*$", dropped, text, flags=re.MULTILINE), corrections


COEFFICIENTS = "COMPU-RATIONAL-COEFFS"


def _straighten(text: str, error: re.Match[str]) -> tuple[str, list[Correction]]:
    """Conversions that are not (offset, factor) over one denominator: without what is zero, else raw values.

    AUTOSAR TPS Software Component Template, "CompuRationalCoeffs": a quotient of two polynomials.
    """
    corrections = []

    def straightened(found: re.Match[str]) -> str:
        block = re.sub(r"<!--.*?-->", "", found[0], flags=re.DOTALL)
        above, below = (_values(block, tag) for tag in ("COMPU-NUMERATOR", "COMPU-DENOMINATOR"))
        if len(above) == 2 and len(below) == 1 and _is_not_zero(below[0]):
            return found[0]
        before = text[: found.start()]
        name = re.search(r"<SHORT-NAME>([^<]*)", before[before.rfind("<COMPU-METHOD") :])
        counts = f"{len(above)} numerator and {len(below)} denominator values"
        done = "those beyond the line are zero, and left out"
        if len(above) < 2 or not below or not _is_not_zero(below[0]) or any(map(_is_not_zero, above[2:] + below[1:])):
            above, below, done = ["0", "1"], ["1"], "which is no line: its signals have their raw values"
        problem = f"COMPU-METHOD {name[1] if name else '?'} has {counts}"
        corrections.append(Correction(_line(text, found.start()), "", problem, done))
        rows = ["".join(f"<V>{value}</V>" for value in values) for values in (above[:2], below[:1])]
        inner = f"<COMPU-NUMERATOR>{rows[0]}</COMPU-NUMERATOR><COMPU-DENOMINATOR>{rows[1]}</COMPU-DENOMINATOR>"
        return f"<{COEFFICIENTS}>{inner}" + "\n" * found[0].count("\n") + f"</{COEFFICIENTS}>"

    return re.sub(rf"<{COEFFICIENTS}>.*?</{COEFFICIENTS}>", straightened, text, flags=re.DOTALL), corrections


def _values(block: str, tag: str) -> list[str]:
    part = re.search(rf"<{tag}>.*?</{tag}>", block, re.DOTALL)
    return re.findall(r"<V>\s*([^<]*?)\s*</V>", part[0]) if part else []


def _is_not_zero(text: str) -> bool:
    try:
        return float(text) != 0
    except ValueError:
        return True


# What refers to something, by the reference that may lead nowhere.
HOLDERS = {"FRAME": "CAN-FRAME-TRIGGERING", "PDU": "PDU-TO-FRAME-MAPPING", "SIGNAL": "I-SIGNAL-TO-I-PDU-MAPPING"}


def _drop_dangling(text: str, error: re.Match[str]) -> tuple[str, list[Correction]]:
    """The frame, PDU or signal of a reference to something that the file does not hold."""
    holder = next((tag for end, tag in HOLDERS.items() if error[1].endswith(end)), None)
    reference = re.search(rf"<{error[1]}-REF\b[^>]*>\s*{re.escape(error[2])}\s*</", text)
    if holder is None or reference is None:
        return text, []
    start, end = text.rfind(f"<{holder}", 0, reference.start()), text.find(f"</{holder}>", reference.start())
    if start < 0 or end < 0 or f"</{holder}>" in text[start : reference.start()]:
        return text, []
    name = re.search(r"<SHORT-NAME>([^<]*)", text[start:end])
    problem = f"refers to {error[2]}, which is not in the file"
    correction = Correction(
        _line(text, reference.start()), name[1] if name else "", problem, f"that {holder} is left out"
    )
    return _blank(text, start, end + len(f"</{holder}>")), [correction]


Rule = Callable[[str, re.Match[str]], tuple[str, list[Correction]]]

DBC_RULES: dict[str, Rule] = {
    r"nvalid syntax at line (\d+), column (\d+)": _drop_at_error,
    r"unused (VAL_|SIG_VALTYPE_) entries": _drop_unused,
    r"frame id 0x[0-9a-f]+ is more than (?:11|29) bits": _mark_extended,
    r"The signal (\S+) length \S+ is not greater than 0 in message (\S+)\.": _drop_signal,
}
KCD_RULES: dict[str, Rule] = {r"Standard frame id 0x[0-9a-f]+ is more than 11 bits": _mark_kcd_extended}
SYM_RULES: dict[str, Rule] = {
    r"Only SYM version 6\.0 is supported": _as_sym_6,
    r"The signal (\S+) length 0 is not greater than 0 in message (\S+)\.": _drop_empty_multiplexer,
}
ARXML_RULES: dict[str, Rule] = {
    r"Expected \d (?:numerator|denominator) values? for linear scaling": _straighten,
    r"division by zero": _straighten,
    r"ncountered dangling reference (\S+)-REF of type \S+ (\S+)": _drop_dangling,
}
RULES = {".dbc": DBC_RULES, ".kcd": KCD_RULES, ".sym": SYM_RULES, ".arxml": ARXML_RULES}


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

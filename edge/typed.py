"""Typed documents: what msgspec says of a bad one, with the closest right name added."""

import re
from typing import Any, get_args

import msgspec

UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`")


def explain(error: Exception, kind: Any) -> str:
    """The error of a document that should have been of this kind, in one line."""
    text = str(error)
    unknown = UNKNOWN.search(text)
    if unknown is None:
        return text
    known = sorted(_fields(kind, set()))
    import difflib  # only where something is wrong

    close = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.5)
    return f"{text}; did you mean {close[0]}?" if close else f"{text}; there are {', '.join(known)}"


def _fields(kind: Any, seen: set[Any]) -> set[str]:
    """Names of the fields of a struct, and of the structs inside."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind in seen:
            return set()
        seen.add(kind)
        names: set[str] = set()
        for field in msgspec.structs.fields(kind):
            names |= {field.encode_name} | _fields(field.type, seen)
        return names
    found: set[str] = set()
    for part in get_args(kind):
        found |= _fields(part, seen)
    return found

"""Which signals of an ARXML file have a conversion that is not raw * factor + offset.

cantools reads those as linear ones and does not say so. AUTOSAR TPS System Template, "CompuMethod".
"""

import xml.etree.ElementTree as ET  # a file that its owner compiles, on the bench

LINEAR = {None, "IDENTICAL", "LINEAR", "TEXTTABLE", "SCALE_LINEAR_AND_TEXTTABLE"}
# From a signal to its conversion: I-SIGNAL to SYSTEM-SIGNAL, to the data type in AUTOSAR 3, to the method.
LINKS = ("SYSTEM-SIGNAL-REF", "DATA-TYPE-REF", "COMPU-METHOD-REF")
HOLDERS = ("I-SIGNAL", "SYSTEM-SIGNAL", "INTEGER-TYPE", "REAL-TYPE", "APPLICATION-PRIMITIVE-DATA-TYPE")


def nonlinear_signals(text: str) -> dict[str, str]:
    """The names of those signals, each with the category of its conversion."""
    try:
        root = ET.fromstring(text.encode())  # noqa: S314
    except ET.ParseError:
        return {}
    kinds: dict[str, str] = {}
    links: dict[str, set[str]] = {}
    for element in root.iter():
        tag, name = _tag(element), _child_text(element, "SHORT-NAME")
        if name is None:
            continue
        if tag == "COMPU-METHOD":
            kind = _kind(element)
            if kind:
                kinds[name] = kind
        elif tag in HOLDERS:
            links[name] = links.get(name, set()) | {
                (part.text or "").rpartition("/")[2] for part in element.iter() if _tag(part) in LINKS
            }
    while more := {name: kinds[to] for name, tos in links.items() if name not in kinds for to in tos if to in kinds}:
        kinds |= more
    return {name: kind for name, kind in kinds.items() if name in links}


def _kind(method: ET.Element) -> str | None:
    """The category of a conversion that is not linear; None of one that is."""
    category = _child_text(method, "CATEGORY")
    if category not in LINEAR:
        return category
    segments = sum(_tag(part) == "COMPU-RATIONAL-COEFFS" for part in method.iter())
    return f"{category} in {segments} segments" if segments > 1 else None


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _child_text(element: ET.Element, tag: str) -> str | None:
    return next((child.text for child in element if _tag(child) == tag), None)

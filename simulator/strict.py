"""JSON as every reader takes it: Python's own also takes NaN, and makes Infinity of 1e999."""

import json
import math
from collections.abc import Callable
from typing import Any


def loads(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """pairs: as object_pairs_hook of json. Raises ValueError, RecursionError."""
    return json.loads(text, parse_constant=_number, parse_float=_number, object_pairs_hook=pairs)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number")
    return number

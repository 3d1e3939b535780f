"""Answers of direct methods: IoT Hub takes 128 KiB, and a vehicle may have a thousand campaigns."""

from collections.abc import Mapping
from typing import Any

import msgspec

MOST_BYTES = 120 << 10


def fit(answer: Mapping[str, Any], *parts: str) -> dict[str, Any]:
    """The answer with as many first entries of these parts (lists or objects) as it can take, in this order.

    left_out says how many of each are not in it, if any.
    """
    fitted = {name: value for name, value in answer.items() if name not in parts}
    room, left_out = MOST_BYTES - len(msgspec.json.encode(fitted)), {}
    for part in parts:
        whole = answer[part]
        entries = list(whole.items()) if isinstance(whole, dict) else list(whole)
        count = 0
        while count < len(entries) and (size := len(msgspec.json.encode(entries[count])) + 1) <= room:
            count, room = count + 1, room - size
        fitted[part] = dict(entries[:count]) if isinstance(whole, dict) else entries[:count]
        if count < len(entries):
            left_out[part] = len(entries) - count
    return {**fitted, "left_out": left_out} if left_out else fitted

"""What the uplink's twin may say, and what its counters count."""

import re
from typing import Annotated

import msgspec

from edge.choice import Limits
from edge.confirmation import Confirmation

_OUTBOX = re.compile("[0-9a-f]{32}")
_Positive = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class UplinkSettings(msgspec.Struct, frozen=True):
    """The uplink's twin, and its defaults.

    latency_s: how long to wait for a message to fill; none in a backlog or with priority 0. message_units: its
    size in units of 4096 bytes, which is what is billed. daily_bytes: what each priority ("0" to "255") may cost a
    day. metered: whether the network costs by the byte; null: as the module's environment says. metered_priority: the
    least important one that is sent then. confirm, confirmed: docs/formats/message.md, Confirmation; confirm_within_s:
    what was not confirmed for so long is sent again. report_s: how often the counters are reported.
    """

    latency_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0
    message_units: Annotated[int, msgspec.Meta(ge=1, le=64)] = 32
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=16)] = 16
    daily_bytes: dict[str, Annotated[int, msgspec.Meta(ge=0)]] = {}
    metered: bool | None = None
    metered_priority: Annotated[int, msgspec.Meta(ge=0, le=255)] = 3
    confirm: bool = False
    confirmed: dict[str, Confirmation] = {}
    confirm_within_s: Annotated[int, msgspec.Meta(ge=1, le=30 * 86400)] = 86400
    retry_min_s: _Positive = 1.0
    retry_max_s: _Positive = 60.0
    send_timeout_s: _Positive = 60.0
    report_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 60.0

    def __post_init__(self) -> None:
        if self.retry_min_s > self.retry_max_s:
            raise ValueError(f"retry_min_s {self.retry_min_s} is greater than retry_max_s {self.retry_max_s}")
        for outbox in self.confirmed:
            if not _OUTBOX.fullmatch(outbox):
                raise ValueError(f"confirmed: {outbox[:40]!r} is no outbox id; they have 32 hex digits")
        for priority in self.daily_bytes:
            if not priority.isdecimal() or int(priority) > 255:
                raise ValueError(f"daily_bytes: {priority[:20]!r} is no priority; they are 0 to 255")

    def limits(self) -> Limits:
        budgets = {int(priority): limit for priority, limit in self.daily_bytes.items()}
        return Limits(self.message_units, self.latency_s, budgets, self.metered_priority)


class Sent(msgspec.Struct):
    """Since the start: what the cloud has acknowledged, of how many units of 4096 bytes; what was set aside because
    the cloud rejects it or breaks off at it; confirmed, and sent again because the cloud had not got it; acknowledged
    so late that less is sent at a time."""

    messages: int = 0
    records: int = 0
    bytes: int = 0
    units: int = 0
    rejected: int = 0
    poisonous: int = 0
    retries: int = 0
    confirmed: int = 0
    sent_again: int = 0
    slow: int = 0

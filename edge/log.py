"""Logs the way IoT Edge reads them: one line per record on stdout.

    <6> 2026-11-22 15:41:42.123 +00:00 [INF] - 3 campaigns running
    <4> 2026-11-22 15:41:43.001 +00:00 [WRN] - cloud unreachable, trying again in 8 s (41 more like this)

edgeAgent's log methods filter on this form. A storm prints one line per message template and interval, with
the number of lines left out since the one before.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

INTERVAL_SECONDS = 10.0
TEMPLATES = 1000  # remembered at a time
LEVELS = {
    "verbose": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "information": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}
# From the least severe: logging's level, syslog's severity, edgeAgent's name.
_NAMES = (
    (logging.CRITICAL, 0, "FTL"),
    (logging.ERROR, 3, "ERR"),
    (logging.WARNING, 4, "WRN"),
    (logging.INFO, 6, "INF"),
)


def setup(level: str | None = None) -> None:
    """Log to stdout at this level, or at RuntimeLogLevel (info where that is absent or unknown)."""
    name = (level or os.environ.get("RuntimeLogLevel") or "info").lower()  # noqa: SIM112 (IoT Edge's name)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Formatter())
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS.get(name, logging.INFO))
    if name not in LEVELS:
        root.warning("RuntimeLogLevel %r is not one of %s: taking info", name, ", ".join(LEVELS))


class Formatter(logging.Formatter):
    """A record in one line; line breaks become ` | `."""

    def format(self, record: logging.LogRecord) -> str:
        severity, name = next(((s, n) for level, s, n in _NAMES if record.levelno >= level), (7, "DBG"))
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        more = getattr(record, "left_out", 0)
        if more:
            text += f" ({more} more like this)"
        return f"<{severity}> {when} +00:00 [{name}] - " + " | ".join(text.splitlines())


class RateLimit(logging.Filter):
    """Let one record of each template through per interval, and count the others onto the next one."""

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.levelno, str(record.msg))
        now = self._clock()
        until, left_out = self._seen.get(key, (now, 0))
        if now < until:
            self._seen[key] = (until, left_out + 1)
            return False
        if key not in self._seen and len(self._seen) >= TEMPLATES:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = (now + self._interval_seconds, 0)
        record.left_out = left_out
        return True

"""How far a command is, on a terminal."""

import sys
from typing import Any

import click


class Progress:
    """A bar on a terminal, nothing elsewhere. to(n) says how much of the total is done."""

    def __init__(self, label: str, total: float) -> None:
        self._bar = click.progressbar(length=1000, label=label, file=sys.stderr, hidden=not sys.stderr.isatty())
        self._total = total
        self._done = 0

    def __enter__(self) -> "Progress":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def to(self, done: float) -> None:
        part = min(1000, int(1000 * done / self._total))
        self._bar.update(part - self._done)
        self._done = part

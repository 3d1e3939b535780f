"""Found by a module's Python before anything else: its outbox is a WatchedOutbox. tests/crash/cuts.py sets it up."""

import os
from typing import Any

import edge.outbox
from tests.crash import controls
from tests.crash.history import History, WatchedOutbox

if path := os.environ.get("CRASH_HISTORY"):
    history = History(path)

    class Watched(WatchedOutbox):
        def __init__(self, folder: Any, *more: Any) -> None:
            super().__init__(folder, history, *more)

    edge.outbox.Outbox = Watched  # type: ignore[misc]
    controls.apply(os.environ.get("CRASH_CONTROL", ""))

"""What the hub keeps of each identity, over restarts: its twin and its session, in hub.json of the state folder."""

from pathlib import Path
from typing import Any

import msgspec

from edge.errors import InputError
from simulator.twin import Twin


class _State(msgspec.Struct):
    twins: dict[str, Twin] = {}
    subscriptions: dict[str, dict[str, int]] = {}
    deployed: dict[str, dict[str, Any]] = {}


class Memory:
    """twins and subscriptions (filter to granted QoS) by identity; deployed: desired sections as a deployment set them.

    An identity that is forgotten and comes again starts anew. Raises InputError: path cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored = _read(path)
        self.twins: dict[str, Twin] = {}
        self.subscriptions: dict[str, dict[str, int]] = {}
        self.deployed = self._stored.deployed

    def recall(self, identity: str) -> None:
        """As it was the last time, or anew."""
        if identity not in self.twins:
            self.twins[identity] = self._stored.twins.get(identity) or Twin()
            self.subscriptions[identity] = self._stored.subscriptions.get(identity, {})

    def forget(self, identity: str) -> None:
        stored = self._stored
        for known in (self.twins, self.subscriptions, stored.twins, stored.subscriptions, stored.deployed):
            known.pop(identity, None)

    def keep(self) -> None:
        """Write it all. Raises OSError."""
        draft = self._path.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(_State(self.twins, self.subscriptions, self.deployed)))
        draft.replace(self._path)


def _read(path: Path) -> _State:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_State)
    except FileNotFoundError:
        return _State()
    except (OSError, ValueError) as error:
        raise InputError(path, f"is no state of a hub ({error})", "delete it: twins and sessions start anew") from error

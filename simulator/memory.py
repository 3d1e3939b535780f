"""What the hub keeps of each identity, over restarts: its twin and its session, in hub.json of the state folder."""

import json
from pathlib import Path
from typing import Any

from edge.errors import InputError
from simulator.twin import Twin


class Memory:
    """twins and subscriptions (filter to granted QoS) by identity; deployed: desired sections as a deployment set them.

    An identity that is forgotten and comes again starts anew. Raises InputError: path cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored = _read(path)
        self.twins: dict[str, Twin] = {}
        self.subscriptions: dict[str, dict[str, int]] = {}
        self.deployed: dict[str, Any] = self._stored.get("deployed", {})

    def recall(self, identity: str) -> None:
        """As it was the last time, or anew."""
        if identity not in self.twins:
            self.twins[identity] = Twin(self._stored.get("twins", {}).get(identity))
            self.subscriptions[identity] = dict(self._stored.get("subscriptions", {}).get(identity, {}))

    def forget(self, identity: str) -> None:
        for known in (self.twins, self.deployed, self.subscriptions, *self._stored.values()):
            known.pop(identity, None)

    def keep(self) -> None:
        """Write it all. Raises OSError."""
        state = {
            "twins": {identity: twin.to_dict() for identity, twin in self.twins.items()},
            "deployed": self.deployed,
            "subscriptions": self.subscriptions,
        }
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(state))
        draft.replace(self._path)


def _read(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(path, f"is no state of a hub ({error})", "delete it: twins and sessions start anew") from error
    if not isinstance(state, dict):
        raise InputError(path, "is no state of a hub", "delete it: twins and sessions start anew")
    return state

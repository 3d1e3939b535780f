"""What the keys of a state folder are made from: random, once, in identity.json."""

import hashlib
import json
import os
from pathlib import Path

from edge.errors import InputError


class Secret:
    """Raises InputError: path cannot be read."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            draft = path.with_suffix(".draft")
            draft.touch(mode=0o600)
            draft.write_text(json.dumps({"secret": os.urandom(32).hex()}))
            draft.replace(path)
        try:
            self._bytes = bytes.fromhex(json.loads(path.read_text())["secret"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            way_out = "delete it: every key is another one then"
            raise InputError(path, f"holds no secret ({error})", way_out) from error

    def key(self, name: str) -> bytes:
        """32 bytes, the same for a name at every start."""
        return hashlib.sha256(self._bytes + name.encode()).digest()

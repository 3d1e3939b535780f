"""Bind mounts without containers: folders of the vehicle become folders below the simulator's state.

"Binds": ["/var/lib/bordnetz:/data:rw"]        <root>/var/lib/bordnetz
"BORDNETZ_SOURCE": "replay:/data/drive.log" ──► "replay:<root>/var/lib/bordnetz/drive.log"
"""

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path


def parse(bind: object) -> tuple[str, str]:
    """What is bound, and where in the container. Raises ValueError: a bind that is not `host:container[:options]`."""
    outside, _, rest = bind.partition(":") if isinstance(bind, str) else ("", "", "")
    inside = rest.partition(":")[0]
    if not outside or not inside.startswith("/"):
        raise ValueError(f"{bind!r} is no bind")
    return outside, inside


class Binds:
    def __init__(self, root: Path) -> None:
        self._root = root

    def host_path(self, path: str) -> Path:
        """Where a path of the vehicle's own file system lies here; `..` does not lead out."""
        return self._root / posixpath.normpath(f"/{path}").lstrip("/")

    def rewrite(self, environment: Mapping[str, str], binds: list[str]) -> dict[str, str]:
        """Make the folders of a module's binds; name them in its environment instead of the container's paths.

        Raises ValueError: a bind that is not `host:container[:options]`.
        """
        places = {}
        for bind in binds:
            outside, inside = parse(bind)
            place = self.host_path(outside)
            if not place.exists():  # it may be a file
                place.mkdir(parents=True)
            places[posixpath.normpath(inside)] = str(place)
        if not places:
            return dict(environment)
        # The deepest mount first, and all at once: what was put in is not looked at again.
        names = "|".join(re.escape(inside) for inside in sorted(places, key=len, reverse=True))
        pattern = re.compile(rf"(?:(?<![\w./-])|(?<=://))(?:{names})(?![\w.-])")
        return {name: pattern.sub(lambda match: places[match[0]], value) for name, value in environment.items()}

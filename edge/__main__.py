"""The `bordnetz` command: that of edge/cli.py, or in a vehicle, which has no click, `bordnetz doctor` alone."""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    if find_spec("click"):
        from edge.cli import main as command

        command()
    sys.exit(_doctor())


def _doctor() -> int:
    from edge.doctor import examine
    from edge.errors import InputError

    parser = argparse.ArgumentParser("bordnetz", description="In a vehicle: why is there no data?")
    parser.add_argument("command", choices=["doctor"])
    parser.add_argument("--outbox", type=Path, default=Path("/var/lib/bordnetz/outbox"))
    parser.add_argument("--json", action="store_true", help="all that the collector knows of itself")
    asked = parser.parse_args()
    try:
        status, sentences = examine(asked.outbox)
    except InputError as error:
        print(f"bordnetz: {error}", file=sys.stderr)
        return 2
    well = "all is well: every bus is alive, and every campaign gets its signals"
    print(json.dumps({"why": sentences, **status}, indent=2) if asked.json else "\n".join(sentences) or well)
    return 1 if sentences else 0


if __name__ == "__main__":
    main()

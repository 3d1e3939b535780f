"""`python -m tests.uml OUT`: the SocketCAN suite in a guest; what it says is shown, and its status is this one's.

Exit 0 too, with the reason, where this machine has no user-mode-linux and cannot install it.
"""

import sys
import time
from pathlib import Path

from simulator.vehicle.drive import write_log
from tests.uml import guest

SECONDS = 420.0
DRIVE_SECONDS = 3.0


def main(out: Path) -> int:
    if why := guest.missing():
        print(f"socketcan: skipped: {why}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    write_log(out / "drive.log", DRIVE_SECONDS, 5)
    began = time.monotonic()
    suite = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/uml/socketcan.py", *sys.argv[2:]]
    status = guest.run([sys.executable, *suite], out, SECONDS)
    print((out / "console.log").read_text(errors="replace"))
    print(f"socketcan: {time.monotonic() - began:.1f} s with the guest's start and end, status {status}")
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

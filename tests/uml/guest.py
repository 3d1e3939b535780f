"""Run a command on a Linux of its own, started from this machine's files: user-mode-linux.

    this machine's / ──read-only──► overlay on a tmpfs ──chroot──► command      writes go to the tmpfs, and end with it
                                        └ out, as it is ◄── what the command leaves behind

The guest has a kernel with CAN, network namespaces, clocks and disks of its own, so that tests may break them. Its
process says nothing about the command: the command's status comes back in a file, and no file is a failure. Debian's
`user-mode-linux` brings the kernel; it needs no privilege, but file permissions are those of whoever starts it.
"""

import functools
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

KERNEL = shutil.which("linux.uml") or ""
MODULES = Path("/usr/lib/uml/modules")
BOOT_SECONDS = 90.0  # two or three are usual
# modprobe does not look there: in the order of their dependencies.
CAN = [
    "drivers/net/can/dev/can-dev",
    "net/can/can",
    "net/can/can-raw",
    "drivers/net/can/vcan",
    "drivers/net/can/vxcan",
]

# A page fault costs 0.2 ms in the guest: with glibc's defaults every large buffer would be mapped anew.
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=16777216
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir /run/upper /run/work /run/root
M=/usr/lib/uml/modules/$(uname -r)/kernel
insmod $M/fs/overlayfs/overlay.ko
for m in {modules}; do test ! -e $M/$m.ko || insmod $M/$m.ko; done
mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work overlay /run/root
cd /run/root
mount -t proc proc proc; mount -t sysfs sys sys; mount -t devtmpfs dev dev; mount -t tmpfs tmpfs run
mkdir -p run/netns dev/shm .{out}
mount -t hostfs none .{out} -o {out},sync
ip link set lo up
export BORDNETZ_GUEST_OUT={out}
chroot . /bin/sh -c {command}
echo $? > .{out}/status
halt -f
"""


@functools.cache
def missing() -> str:
    """Why there can be no guest here, with the way out; empty where there can."""
    if not KERNEL or not MODULES.is_dir():
        return "user-mode-linux is not installed: apt-get install user-mode-linux kmod iproute2 can-utils"
    absent = [tool for tool in ("insmod", "ip") if not shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if absent:
        return f"{', '.join(absent)} are not installed: apt-get install kmod iproute2"
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(["true"], Path(folder), BOOT_SECONDS, modules=())
        except (OSError, RuntimeError) as error:
            return f"a guest does not come up on this machine ({error})"
    return ""


@contextmanager
def started(
    command: Sequence[str], out: Path, *, modules: Sequence[str] = CAN, disks: Sequence[Path] = (), memory: str = "1G"
) -> Iterator["subprocess.Popen[bytes]"]:
    """A guest that runs the command in this working directory; ended, if it has not ended itself.

    out: an existing folder, which has the same name in the guest; console.log there has what the guest says, status
    the command's exit status. disks: files that are /dev/ubda, /dev/ubdb, … in the guest.
    """
    out = out.absolute()
    (out / "status").unlink(missing_ok=True)
    line = shlex.join(["cd", os.getcwd()]) + " && exec " + shlex.join(command)
    init = out / "init.sh"
    init.write_text(INIT.format(modules=" ".join(modules), out=shlex.quote(str(out)), command=shlex.quote(line)))
    init.chmod(0o755)
    arguments = [
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        f"init={init}",
        f"mem={memory}",
        f"uml_dir={out}/",
    ]
    arguments += [f"ubd{number}={disk}" for number, disk in enumerate(disks)]
    with (out / "console.log").open("wb") as console:
        guest = subprocess.Popen(
            [KERNEL, *arguments, "con=null", "con0=null,fd:1", "quiet"],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the guest's processes are processes here: all end with their group
        )
    try:
        yield guest
    finally:
        end(guest)


def end(guest: "subprocess.Popen[bytes]") -> None:
    """As a power cut does."""
    with suppress(ProcessLookupError):
        os.killpg(guest.pid, signal.SIGKILL)
    guest.wait()


def run(command: Sequence[str], out: Path, seconds: float, **options: object) -> int:
    """Run a command to its end; return its exit status. Raises TimeoutError; RuntimeError: the guest itself failed."""
    began = time.monotonic()
    with started(command, out, **options) as guest:  # type: ignore[arg-type]
        try:
            guest.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not done after {time.monotonic() - began:.0f} s: see {out}/console.log") from None
    try:
        return int((out / "status").read_text())
    except (OSError, ValueError):
        raise RuntimeError(f"the guest did not come to its end: see {out}/console.log") from None

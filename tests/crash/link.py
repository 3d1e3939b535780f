"""A mobile network between two network namespaces: delay, jitter, loss, rate and tunnels, from a seed.

    vehicle namespace ── tun ── [ loss ─► rate ─► delay, jitter ] ── tun ── cloud namespace

`python -m tests.crash.link VEHICLE CLOUD --seed N` carries packets until it is killed; each line on its standard input
names the profile that counts from then on, and a dot answers each. Real TCP and TLS cross it. Packets overtake each
other as jitter has it; what a real cell does beyond that (handovers, other addresses, NAT that forgets) is not here.
"""

import argparse
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

VEHICLE, CLOUD = "10.77.0.1", "10.77.0.2"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
QUEUE_S = 2.0  # what would have to wait longer for its turn is dropped, as a modem's buffer does


class Profile(NamedTuple):
    """One way: delay and jitter in seconds, loss as a share of packets, rate in bits a second."""

    delay_s: float
    jitter_s: float
    loss: float
    rate: float


PROFILES = {
    "lte": Profile(0.03, 0.01, 0.005, 10e6),
    "3g": Profile(0.08, 0.03, 0.01, 1e6),
    "2g": Profile(0.3, 0.1, 0.02, 120e3),
    "bad": Profile(0.1, 0.1, 0.15, 500e3),
    "tunnel": Profile(0, 0, 1, 1e6),
    "parking": Profile(0.01, 0.002, 0, 50e6),
}


def open_tun(namespace: str, address: str) -> int:
    """A tun device in a namespace, up and with its address; its descriptor works from here."""
    with Path("/proc/self/ns/net").open() as home, Path(f"/run/netns/{namespace}").open() as there:
        _enter(there.fileno())
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
        os.spawnvp(os.P_WAIT, "ip", ["ip", "link", "set", "lo", "up"])
        os.spawnvp(os.P_WAIT, "ip", ["ip", "address", "add", f"{address}/24", "dev", "tun0"])
        os.spawnvp(os.P_WAIT, "ip", ["ip", "link", "set", "tun0", "up"])
        _enter(home.fileno())
    return tun


def _enter(namespace: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def carry(ends: list[int], chance: random.Random) -> None:
    """Until the standard input ends."""
    profile, free = PROFILES["parking"], [0.0, 0.0]
    due: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        wait = max(0.0, due[0][0] - time.monotonic()) if due else None
        ready, _, _ = select.select([*ends, sys.stdin], [], [], wait)
        now = time.monotonic()
        if sys.stdin in ready:
            line = os.read(sys.stdin.fileno(), 100)
            if not line:
                return
            profile = PROFILES[line.decode().split()[-1]]
            os.write(1, b".")
        for side, end in enumerate(ends):
            if end in ready and (packet := os.read(end, 65536)) and chance.random() >= profile.loss:
                sent = max(free[side], now) + len(packet) * 8 / profile.rate
                if sent - now < QUEUE_S:
                    free[side], number = sent, number + 1
                    arrives = sent + max(0.0, chance.gauss(profile.delay_s, profile.jitter_s))
                    heapq.heappush(due, (arrives, number, side, packet))
        while due and due[0][0] <= now:
            _, _, side, packet = heapq.heappop(due)
            try:
                os.write(ends[1 - side], packet)
            except OSError:
                continue  # its buffer is full: lost


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("vehicle")
    parser.add_argument("cloud")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    ends = [open_tun(asked.vehicle, VEHICLE), open_tun(asked.cloud, CLOUD)]
    os.write(1, b".")
    carry(ends, random.Random(asked.seed))


if __name__ == "__main__":
    main()

"""Timing two things in turn."""

import statistics
import time
from collections.abc import Callable


def pairs(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int, repeat: int = 1, peer_repeat: int = 1
) -> tuple[float, float, float]:
    """Median CPU seconds of one call of both, and the median of peer / ours, after one round that does not count.

    repeat: calls in one measurement, so that the caches are its own and not what the other left in them.
    """
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        start = time.process_time()
        for _ in range(peer_repeat):
            peer()
        middle = time.process_time()
        for _ in range(repeat):
            ours()
        times.append(((time.process_time() - middle) / repeat, (middle - start) / peer_repeat))
    times = times[1:]
    own, other = zip(*times, strict=True)
    return statistics.median(own), statistics.median(other), statistics.median(b / a for a, b in times)

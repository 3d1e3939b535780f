"""The fixed script that is cut: `python -m tests.crash.victim FOLDER HISTORY --seed N --steps N [--control NAME]`.

One process is producer and consumer of a real outbox, and keeps settings as edge/twin.py does. Everything it does
follows from the seed and from what it finds; started again after a cut, it goes on at its cursor, as a replayed source
does.
"""

import argparse
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from edge.durable import write_durably
from edge.errors import OutboxError
from edge.outbox import NewRecord, Record
from tests.crash import controls
from tests.crash.history import Event, History, WatchedOutbox, drain, settle

STREAMS = ("drive", "hard_brake", "raw")
SETTINGS = "settings-collector.json"


def record(n: int) -> NewRecord:
    """The n-th record of the source: no two are alike."""
    size = random.Random(n).choice((0, 40, 700, 3000, 9000))
    return NewRecord(n % 3, STREAMS[n % 3], bytes([n % 3]) * 32, b"%d " % n + random.Random(n).randbytes(size))


class Victim:
    def __init__(self, folder: Path, history: History, seed: int, control: str = "") -> None:
        self._folder = folder
        self._history = history
        self._random = random.Random(seed)
        self._kind = controls.EarlyOutbox if control == "early-acknowledgement" else WatchedOutbox
        self._deliver = controls.deliver_late if control == "early-delete" else deliver
        self.outbox = self._kind(folder, history)
        self._steps: list[tuple[Callable[[], None], int]] = [
            (self.append, 12),
            (self.send, 4),
            (self.hold, 1),
            (self.confirm, 1),
            (self.evict, 1),
            (self.set_aside, 1),
            (self.tell, 1),
            (self.reopen, 1),
            (self.keep_settings, 1),
        ]

    def run(self, steps: int) -> int:
        """Returns how many steps failed."""
        failed = 0
        for _ in range(steps):
            step = self._random.choices([step for step, _ in self._steps], [weight for _, weight in self._steps])[0]
            try:
                step()
            except OutboxError:
                failed += 1
        return failed

    def close(self) -> None:
        self.outbox.close()

    def append(self) -> None:
        first = int(self.outbox.cursor("source") or 0)
        end = first + self._random.randint(1, 4)
        self.outbox.append([record(n) for n in range(first, end)], ("source", b"%d" % end))

    def send(self) -> None:
        self._deliver(self.outbox, self.outbox.peek(20_000, 5), self.outbox.ack)

    def hold(self) -> None:
        self._deliver(self.outbox, self.outbox.peek(20_000, 2), self.outbox.hold)

    def confirm(self) -> None:
        self.outbox.confirm(self.outbox.id, self._random.randint(1, 100), [(3, 4)])

    def evict(self) -> None:
        self.outbox.evict(4000)

    def set_aside(self) -> None:
        self.outbox.set_aside([record.sequence for record in self.outbox.peek(1, 1)], "rejected", "as a cloud would")

    def tell(self) -> None:
        settle(self.outbox, self._history)

    def reopen(self) -> None:
        self.outbox.close()
        self.outbox = self._kind(self._folder, self._history)

    def keep_settings(self) -> None:
        """The file says its own number; saving and saved are for the layer that looks at it."""
        path = self._folder / SETTINGS
        number = int(path.read_bytes().split(b" ")[0]) + 1 if path.exists() else 1
        self._history.enter([Event("saving", sequence=number)])
        try:
            write_durably(path, [b"%d " % number, bytes(self._random.randint(0, 3000)), b"."])
        except OSError:
            return
        self._history.enter([Event("saved", sequence=number)])


def deliver(outbox: WatchedOutbox, records: list[Record], forget: Callable[[Iterable[int]], None]) -> None:
    outbox.history.delivered(b"", records)
    forget(record.sequence for record in records)


def finish(folder: Path, history: History) -> None:
    """What must work after any fault: open what is left, deliver all, go on, deliver that."""
    victim = Victim(folder, history, 1)
    drain(victim.outbox, history)
    victim.append()
    victim.keep_settings()
    drain(victim.outbox, history)
    victim.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("history", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--control", default="")
    asked = parser.parse_args()
    controls.apply(asked.control)
    victim = Victim(asked.folder, History(asked.history), asked.seed, asked.control)
    victim.run(asked.steps)
    victim.close()


if __name__ == "__main__":
    main()

"""The short form of `make offline-month`: thirty days in steps of two hours, on a small quota."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.offline_month import Month


@pytest.fixture
def memory() -> Iterator[Path]:
    """A disk in memory where there is one: this is about what is kept, not about power cuts."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


async def test_thirty_days_offline_leave_what_the_rules_say_and_the_ledger_and_the_drain_account_for_all(memory):
    month = Month(memory, 4 << 20, 2 * 3600, seed=1)
    month.go_offline()
    assert month.least_full > 0.6  # nothing goes while there is room
    uplink = await month.drain()
    month.check()
    reasons = {reason for _, reason in month.model.gone.values()}
    assert (reasons, month.waited_for > 100) == ({"quota", "expired"}, True)
    assert uplink.sent.rejected == uplink.sent.poisonous == 0

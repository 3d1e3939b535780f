"""What holds for every test."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from edge.outbox import Outbox

# No test fails because the machine is slow. CI takes the same examples each time; here and in fuzzing they are new.
settings.register_profile("bordnetz", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("bordnetz")


@pytest.fixture
def outbox(tmp_path: Path) -> "Iterator[Outbox]":
    from edge.outbox import MIN_QUOTA_BYTES, Outbox  # not above: tests.fuzz.sanitized puts other kernels in place first

    with Outbox(tmp_path, MIN_QUOTA_BYTES) as opened:
        yield opened


@pytest.fixture
def collector(outbox: "Outbox", tmp_path: Path) -> "Iterator[Outbox]":
    """The other side's connection; the uplink's own is used by its thread alone."""
    from edge.outbox import MIN_QUOTA_BYTES, Outbox

    with Outbox(tmp_path, MIN_QUOTA_BYTES) as opened:
        yield opened


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as opened:
        yield opened

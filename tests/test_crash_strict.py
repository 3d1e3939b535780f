"""A little of L1 of `make crash`, in every test run: a power cut at any point of a run loses nothing."""

import shutil

import pytest

from tests.crash.strict import live

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt-get install strace")


def test_an_outbox_and_its_settings_survive_a_power_cut_at_any_point_of_its_first_run():
    tried, losses = live(1, 40, generations=1)
    assert losses == []
    assert tried > 20


def test_a_strict_disk_shows_what_comes_of_a_log_that_is_not_flushed():
    assert live(1, 40, "synchronous-normal", generations=1)[1]

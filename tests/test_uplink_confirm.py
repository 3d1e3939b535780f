"""Confirmation: what a hub has acknowledged stays until the cloud side says that it has it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.confirmation import Confirmation, name_of
from edge.uplink_settings import UplinkSettings
from fleet.ranges import Ranges
from tests.fake_cloud import PROMPT, FakeCloud, new, running, until


async def test_with_confirm_a_record_leaves_only_when_the_cloud_side_says_it_has_it_and_gaps_are_sent_again(
    outbox, collector, executor
):
    cloud = FakeCloud()
    careful = msgspec.structs.replace(PROMPT, confirm=True)
    collector.append([new(3000) for _ in range(6)])
    collector.evict(1)
    collector.ledger()  # so that it is told
    async with running(outbox, cloud, executor, careful) as uplink:
        await until(cloud, lambda: collector.stats().held == 5)
        assert cloud.sequences == [2, 3, 4, 5, 6]
        said = {outbox.id.hex(): Confirmation.of(5, [(1, 1), (3, 4)])}
        uplink.settings = msgspec.structs.replace(careful, confirmed=said)
        await until(cloud, lambda: len(cloud.sequences) == 7)
        assert cloud.sequences[5:] == [3, 4]
        await until(cloud, lambda: collector.stats().held == 3)
        assert collector.stats().records == 3
        assert (uplink.sent.confirmed, uplink.sent.sent_again) == (2, 2)
        assert len(collector.ledger()) == 1
        [told] = [eviction for envelope in cloud.delivered for eviction in envelope.evictions]
        said = {outbox.id.hex(): Confirmation(6, evictions=name_of(told))}
        uplink.settings = msgspec.structs.replace(careful, confirmed=said)
        await until(cloud, lambda: not collector.stats().records and not collector.ledger())
    assert len(cloud.sequences) == 7


async def test_what_the_cloud_does_not_confirm_in_time_is_sent_and_told_again(outbox, collector, executor):
    cloud = FakeCloud()
    hasty = msgspec.structs.replace(PROMPT, confirm=True, confirm_within_s=1)
    collector.append([new(3000) for _ in range(2)])
    collector.evict(1)
    async with running(outbox, cloud, executor, hasty):
        await until(cloud, lambda: cloud.sequences.count(2) == 2)
        await until(cloud, lambda: len([one for envelope in cloud.delivered for one in envelope.evictions]) == 2)


@given(st.sets(st.integers(1, 10**6), max_size=2000))
def test_a_confirmation_says_no_more_than_a_twin_can_hold_and_nothing_wrong(missing):
    ranges = list(Ranges((number, number) for number in missing))
    said = Confirmation.of(2_000_000, ranges)
    assert len(said.gaps) <= 3500
    assert said.ranges() == [pair for pair in ranges if pair[0] <= said.until]
    assert msgspec.convert(msgspec.to_builtins(said), Confirmation) == said


@pytest.mark.parametrize("gaps", ["x", "1-", "1,,2", "-3", "1-2-3", "1 - 2"])
def test_gaps_that_are_no_ranges_are_refused(gaps):
    with pytest.raises(msgspec.ValidationError, match="are no ranges"):
        msgspec.convert({"until": 3, "gaps": gaps}, Confirmation)


def test_an_outbox_that_is_none_is_refused_before_it_can_stop_the_uplink():
    with pytest.raises(ValueError, match="'zz' is no outbox id; they have 32 hex digits"):
        UplinkSettings(confirmed={"zz": Confirmation(3)})

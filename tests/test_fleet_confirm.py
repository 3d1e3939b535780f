"""What the cloud tells the vehicles that it has: never more than is true, and in the end all of it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.cli import main
from edge.confirmation import MAX_TEXT_BYTES, Confirmation, name_of
from edge.errors import CloudUnreachable, InputError
from edge.message import Block, Clock, Counters, Coverage, Eviction, Quality, Record, pack, unpack
from edge.outbox import NewRecord, Outbox
from edge.twin import merge_patch
from fleet.archive import Archive
from fleet.confirm import VARIABLE, Confirmed, IoTHubTwins, confirm
from fleet.folder import folder_of, open_table
from fleet.messages import Place, Received
from tests.test_simulate_service import CAR, device  # noqa: F401 (device is a fixture)

ID = bytes(16)


class MemoryTwins:
    """One module's twin: what it applies, it reports."""

    def __init__(self, **desired: Any) -> None:
        self.twin: dict[str, Any] = {"confirm": True, "$version": 1, **desired}
        self.patches: list[dict[str, Any]] = []

    def desired(self, vehicle: str, module: str) -> dict[str, Any]:
        return self.twin

    def patch(self, vehicle: str, module: str, desired: dict[str, Any]) -> None:
        self.patches.append(desired)
        self.twin = merge_patch(self.twin, {**desired, "$version": self.twin["$version"] + 1})

    def apply(self) -> Confirmation:
        self.twin["reported"] = {"settings": {"version": self.twin["$version"]}}
        return msgspec.convert(self.twin["confirmed"][ID.hex()], Confirmation)


def body(number: int) -> bytes:
    clock = Clock(bytes(16), 1_795_500_000_000_000, Quality.SYNCHRONISED)
    return Block(bytes(8), clock, Coverage("replay:x", number, number + 1, 0), Counters(1)).encode()


def give(
    table: Path, sequences: list[int], evictions: list[Eviction] | None = None, damaged: int = 0, at: int = 0
) -> None:
    """Messages of 20 records into the archive of a table."""
    records = [Record(n, 5, "drive", b"\xff" if n == damaged else body(n)) for n in sequences]
    parts = [records[i : i + 20] for i in range(0, len(records), 20)] or [[]]
    bodies = [pack("car", ID, bytes(32), part, () if i else evictions or ()) for i, part in enumerate(parts)]
    with open_table(table):
        Archive(folder_of(table, "car")).add(
            Received(Place(Path("m.json"), i), "car", at + i, one, unpack(one)) for i, one in enumerate(bodies)
        )


def only(found: Iterator[Confirmed]) -> Confirmed:
    [one] = found
    return one


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["here", "lost", "evicted", "both"])), max_size=60),
    st.data(),
)
def test_no_record_that_the_vehicle_may_still_hold_is_confirmed_unless_it_is_here(
    tmp_path_factory: pytest.TempPathFactory, fates: list[tuple[str, str]], data: st.DataObject
) -> None:
    """both: the hub had taken it when the quota took it; so the ledger names a record that arrived."""
    table = tmp_path_factory.mktemp("table")
    numbered = list(enumerate(fates, start=1))
    evictions = []
    for stream in "abc":
        gone = [n for n, (name, fate) in numbered if name == stream and fate in ("evicted", "both")]
        cut = data.draw(st.integers(0, len(gone)))
        evictions += [
            Eviction(part[0], part[-1], len(part), stream, "quota", cut) for part in (gone[:cut], gone[cut:]) if part
        ]
    here = [n for n, (_, fate) in numbered if fate in ("here", "both")]
    give(table, here, evictions)
    twins = MemoryTwins()
    found = only(confirm(table, twins))
    said = twins.apply()
    assert not any(said.has(n) for n, (_, fate) in numbered if fate == "lost")
    assert all(said.has(n) for n in here)
    assert all(said.knows(eviction) for eviction in evictions)
    assert (found.records >= len(here), found.problem) == (True, "")
    assert not only(confirm(table, twins)).patch  # said once


def test_what_was_evicted_as_a_whole_is_no_gap(tmp_path: Path) -> None:
    every_second = [Eviction(2 + i, 8 + i, 4, name, "quota", 1) for i, name in enumerate("ab")]
    salvage = Eviction(1, 1, 0, "", "salvage", 1)
    give(tmp_path, [10, 12], [*every_second, salvage, Eviction(11, 13, 1, "c", "quota", 1)])
    twins = MemoryTwins()
    assert only(confirm(tmp_path, twins)).gaps == 1
    assert twins.apply().ranges() == [(11, 11)]


def test_with_more_gaps_than_a_twin_holds_the_parts_come_one_after_the_other_as_the_vehicle_takes_them(
    tmp_path: Path,
) -> None:
    here = set(range(1, 4001, 2))
    give(tmp_path, sorted(here))
    twins, confirmed = MemoryTwins(), set[int]()
    for part in range(6):
        assert only(confirm(tmp_path, twins)).patch
        said = twins.twin["confirmed"][ID.hex()]
        assert len(said["gaps"]) <= MAX_TEXT_BYTES
        assert not only(confirm(tmp_path, twins)).patch, part  # until the vehicle has it
        found = twins.apply()
        confirmed |= {n for n in range(1, 4001) if found.has(n)}
    assert confirmed == here


def test_a_record_that_comes_damaged_again_and_again_is_not_asked_for_for_ever(tmp_path: Path) -> None:
    twins = MemoryTwins()
    give(tmp_path, [1, 2, 3], damaged=2)
    only(confirm(tmp_path, twins))
    assert not twins.apply().has(2)
    give(tmp_path, [2], damaged=2, at=50)
    only(confirm(tmp_path, twins))
    assert twins.apply().has(2)


def test_a_vehicle_that_does_not_ask_or_is_unknown_or_damaged_is_left_alone(tmp_path: Path) -> None:
    give(tmp_path, [1, 2])
    assert only(confirm(tmp_path, MemoryTwins(confirm=False))) == Confirmed("car", asks=False)
    twins = MemoryTwins()
    twins.desired = lambda vehicle, module: None  # type: ignore[method-assign, assignment, return-value]
    assert "no module 'uplink'" in only(confirm(tmp_path, twins)).problem
    [segment] = tmp_path.rglob("*.segment")
    segment.write_bytes(segment.read_bytes()[:-5])
    assert "is cut" in only(confirm(tmp_path, MemoryTwins())).problem
    with pytest.raises(InputError, match="holds no table"):
        only(confirm(tmp_path / "elsewhere"))


def test_outboxes_that_are_gone_from_the_table_are_taken_out_of_the_twin(tmp_path: Path) -> None:
    give(tmp_path, [1])
    twins = MemoryTwins(confirmed={"ab" * 16: {"until": 7}, ID.hex(): "nonsense"})
    only(confirm(tmp_path, twins))
    assert twins.twin["confirmed"] == {ID.hex(): msgspec.to_builtins(Confirmation(1))}


def test_evictions_have_names_that_differ() -> None:
    one = Eviction(1, 2, 2, "drive", "quota", 5)
    others = [msgspec.structs.replace(one, **{field: value}) for field, value in (("count", 1), ("time_us", 6))]
    assert len({name_of(each) for each in [one, *others]}) == 3


@pytest.mark.parametrize("text", ["", "HostName=h", "nonsense", "HostName=h;SharedAccessKeyName=a;SharedAccessKey="])
def test_what_is_no_connection_string_is_one_line_without_the_key(text: str) -> None:
    with pytest.raises(InputError, match=rf"^{VARIABLE}: is (not set|no connection string of an IoT Hub); set"):
        IoTHubTwins(text)


def test_a_hub_that_is_not_there_or_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.confirm.time.sleep", lambda seconds: None)
    twins = IoTHubTwins("HostName=127.0.0.1:9;SharedAccessKeyName=a;SharedAccessKey=YQ==")
    with pytest.raises(CloudUnreachable, match="cannot be asked"):
        twins.desired("car", "uplink")


# From the outbox to the table and back


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (what it waits for has no event)
            await asyncio.sleep(0.01)


def start_uplink(environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "modules.uplink.main"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.process
async def test_records_leave_the_vehicle_once_the_table_has_them_and_what_the_hub_lost_comes_again(
    device,  # noqa: F811
    tmp_path,
):
    """A message is swallowed behind the hub's acknowledgement. Uplink, hub, service API, table: the real ones."""
    store, lost = device.hub.store.store, []

    def lose_the_third(*message: Any) -> None:
        lost.append(message)
        if len(lost) != 3:
            store(*message)

    device.hub.router.configure({"routes": {"all": "FROM /messages/* INTO $upstream"}})
    device.hub.store.store = lose_the_third
    prompt = {"latency_s": 0, "message_units": 1, "retry_min_s": 0.05, "retry_max_s": 0.1}
    device.hub.patch_desired("uplink", {**prompt, "confirm": True})
    environment = {**os.environ, **device.environment("uplink"), "BORDNETZ_OUTBOX": str(tmp_path / "outbox")}

    async def fleet(*arguments: str, connection: str = device.connection_string) -> Any:
        invoke = CliRunner(env={VARIABLE: connection}).invoke
        return await asyncio.to_thread(invoke, main, ["fleet", *arguments])

    async def told() -> str:
        await fleet("decode", str(device.hub.messages_dir), "-o", str(tmp_path / "table"))
        result = await fleet("confirm", str(tmp_path / "table"))
        assert result.exit_code == 0, result.output
        return str(result.output)

    with Outbox(tmp_path / "outbox") as outbox:
        uplink = start_uplink(environment)
        try:
            outbox.append([NewRecord(5, "drive", bytes(32), body(n)) for n in range(1, 4)])
            for n in range(4, 13):  # in messages of their own
                await until(lambda n=n: outbox.stats().held == n - 1)
                outbox.append([NewRecord(5, "drive", bytes(32), body(n))])
            await until(lambda: outbox.stats().held == 12)
            [missing] = [record.sequence for record in unpack(lost[2][3]).records]
            assert await told() == "1 vehicles ask, 1 were told news: 11 records are here, 1 are not\n"
            await until(lambda: outbox.stats().records == 1 and outbox.stats().held == 1)
            [again] = unpack(lost[-1][3]).records
            assert again.sequence == missing
            assert "12 records are here, 0 are not" in await told()
            await until(lambda: outbox.stats().records == 0)
            version = device.hub.twin("uplink").document()["desired"]["$version"]
            assert "0 were told news" in await told()
            assert device.hub.twin("uplink").document()["desired"]["$version"] == version
        finally:
            uplink.terminate()
            await asyncio.to_thread(uplink.wait, 30)
    printed = await fleet("confirm", str(tmp_path / "table"), "--print")
    document = json.loads(printed.output)
    assert (document["vehicle"], printed.exit_code) == (CAR, 0)
    assert document["desired"]["confirmed"] == {outbox.id.hex(): msgspec.to_builtins(Confirmation(12))}
    unknown = await fleet("confirm", str(tmp_path / "table"), "--module", "nobody")
    assert (unknown.exit_code, "no module 'nobody'" in unknown.output) == (1, True)
    key = device.connection_string.partition("SharedAccessKey=")[2]
    refused = await fleet("confirm", str(tmp_path / "table"), connection=device.connection_string.replace(key, "YQ=="))
    assert (refused.exit_code, "is refused (401)" in refused.output) == (2, True)

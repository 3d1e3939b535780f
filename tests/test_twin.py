"""Settings: a bad piece is refused with its reason, the last good one goes on, and all of it survives a restart."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from edge import twin as twin_module
from edge.errors import CloudUnreachable, InputError, MessageRejected
from edge.twin import Twin


class Campaign(msgspec.Struct, frozen=True):
    signals: dict[str, dict[str, float]]
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5


class Settings(msgspec.Struct, frozen=True):
    campaigns: dict[str, Campaign] = {}
    low_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 1.0
    high_s: float = 10.0

    def __post_init__(self) -> None:
        if self.low_s > self.high_s:
            raise ValueError("low_s is greater than high_s")


def no_speed(field: str, entry: str | None, value: Any) -> None:
    if field == "campaigns" and "SPEED" in value.signals:
        raise InputError(f"campaign {entry}", "there is no signal SPEED")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings-test.json"


def desired(version: int = 1, **settings: Any) -> dict[str, Any]:
    return {"desired": {**settings, "$version": version}, "reported": {"$version": 4}}


def test_without_a_twin_the_defaults_hold(path):
    assert Twin(Settings, path).settings == Settings()


def test_a_document_becomes_the_settings_and_what_is_not_in_it_its_default(path):
    twin = Twin(Settings, path)
    twin.update(desired(low_s=2, campaigns={"drive": {"signals": {"*": {}}, "priority": 1}}))
    assert twin.settings == Settings({"drive": Campaign({"*": {}}, 1)}, 2.0)
    twin.update(desired(low_s=3))
    assert twin.settings == Settings(low_s=3.0)


def test_an_identical_document_changes_nothing_but_the_version(path):
    changes = []
    twin = Twin(Settings, path, on_change=changes.append)
    twin.update(desired(7, low_s=2))
    twin.update(desired(8, low_s=2))
    assert len(changes) == 1
    assert twin.state["version"] == 8


def test_a_bad_value_is_refused_with_its_reason_and_the_last_good_one_goes_on(path):
    twin = Twin(Settings, path)
    twin.update(desired(low_s=2))
    twin.update(desired(low_s=61, high_s=20, colour="red"))
    assert (twin.settings.low_s, twin.settings.high_s) == (2.0, 20.0)
    assert "<= 60" in twin.state["refused"]["low_s"]
    assert "there are: campaigns, low_s, high_s" in twin.state["refused"]["colour"]


def test_a_bad_campaign_does_not_hold_up_the_others(path):
    twin = Twin(Settings, path, no_speed)
    good, bad = {"signals": {"A.B": {}}}, {"signals": {"SPEED": {}}}
    twin.update(desired(campaigns={"a": good, "b": good, "c": bad}))
    assert list(twin.settings.campaigns) == ["a", "b"]
    twin.update(desired(campaigns={"a": {**good, "priority": 3}, "b": {"signals": 3}}))
    assert twin.settings.campaigns == {"a": Campaign({"A.B": {}}, 3), "b": Campaign({"A.B": {}})}
    assert list(twin.state["refused"]) == ["campaigns/b"]


def test_pieces_that_do_not_go_together_change_nothing(path):
    twin = Twin(Settings, path)
    twin.update(desired(low_s=20))
    assert twin.settings == Settings()
    assert twin.state["refused"] == {"all": "low_s is greater than high_s"}


@pytest.mark.parametrize("document", [{}, {"desired": {}}, {"desired": None, "reported": None}])
def test_an_empty_twin_without_a_version_is_fine(path, document):
    twin = Twin(Settings, path)
    twin.update(document)
    assert twin.settings == Settings()
    assert twin.state["version"] is None


def test_the_last_good_settings_hold_after_a_restart_without_network(path):
    twin = Twin(Settings, path)
    twin.update(desired(low_s=2))
    twin.update(desired(low_s=-1, high_s=30))
    again = Twin(Settings, path)
    assert again.settings == twin.settings == Settings(low_s=2.0, high_s=30.0)
    assert again.state == twin.state


@pytest.mark.parametrize("content", [b"", b"{", b'{"settings": 3}', b"\xff"])
def test_a_damaged_file_of_kept_settings_means_defaults(path, content):
    path.write_bytes(content)
    assert Twin(Settings, path).settings == Settings()


def test_a_kept_piece_that_a_new_version_does_not_know_is_left_out(path):
    twin = Twin(Settings, path)
    twin.update(desired(low_s=2))
    path.write_bytes(path.read_bytes().replace(b"high_s", b"hihi_s"))
    assert Twin(Settings, path).settings == Settings(low_s=2.0)


def test_a_name_that_twins_do_not_allow_is_reported_in_an_allowed_one(path):
    twin = Twin(Settings, path)
    twin.update(desired(**{"a.b c": 1}))
    assert list(twin.state["refused"]) == ["a_b_c"]


# Reporting


class FakeCloud:
    """Takes patches, or fails as told."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.patches: list[dict[str, Any]] = []
        self.taken = asyncio.Event()

    async def wait_connected(self) -> None:
        return

    async def report(self, patch: dict[str, Any]) -> None:
        answer = self.answers.pop(0) if self.answers else None
        if answer:
            raise answer
        self.patches.append(patch)
        self.taken.set()


async def run_until_taken(twin: Twin[Settings], cloud: FakeCloud) -> None:
    task = asyncio.create_task(twin.run(cloud))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await cloud.taken.wait()
    task.cancel()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(twin_module, "MIN_REPORT_SECONDS", 0.0)


async def test_reports_are_merged_into_one_patch(path):
    twin, cloud = Twin(Settings, path), FakeCloud()
    twin.report({"sent": {"records": 1, "bytes": 10}})
    twin.report({"sent": {"records": 2}, "outbox": {"records": 0}})
    await run_until_taken(twin, cloud)
    assert cloud.patches == [{"sent": {"records": 2, "bytes": 10}, "outbox": {"records": 0}}]


async def test_a_patch_the_cloud_did_not_take_is_sent_with_what_came_after(path):
    twin, cloud = Twin(Settings, path), FakeCloud(CloudUnreachable("no"), CloudUnreachable("no"))
    twin.report({"a": 1, "b": {"c": 1}})
    await run_until_taken(twin, cloud)
    assert cloud.patches == [{"a": 1, "b": {"c": 1}}]


async def test_a_patch_the_cloud_rejects_does_not_hold_up_the_next(path):
    twin, cloud = Twin(Settings, path), FakeCloud(MessageRejected("bad"))
    twin.report({"a": 1})
    task = asyncio.create_task(twin.run(cloud))  # type: ignore[arg-type]
    while cloud.answers:  # noqa: ASYNC110
        await asyncio.sleep(0)
    twin.report({"b": 2})
    async with asyncio.timeout(5):
        await cloud.taken.wait()
    task.cancel()
    assert cloud.patches == [{"b": 2}]


async def test_the_settings_are_reported_and_what_is_refused_no_more_is_deleted(path):
    twin, cloud = Twin(Settings, path), FakeCloud()
    document = desired(low_s=2)
    document["reported"]["settings"] = {"hash": "old", "version": 0, "refused": {"high_s": "too high"}}
    twin.update(document)
    await run_until_taken(twin, cloud)
    assert cloud.patches[0]["settings"]["refused"] == {"high_s": None}
    assert cloud.patches[0]["settings"]["version"] == 1


async def test_settings_that_the_cloud_knows_are_not_reported_again(path):
    twin, cloud = Twin(Settings, path), FakeCloud()
    twin.update({**desired(low_s=2), "reported": {"settings": {**_state_of(path, low_s=2)}}})
    twin.report({"marker": 1})
    await run_until_taken(twin, cloud)
    assert cloud.patches == [{"marker": 1}]


def _state_of(path: Path, **settings: Any) -> dict[str, Any]:
    twin = Twin(Settings, path.with_name("other.json"))
    twin.update(desired(**settings))
    return twin.state

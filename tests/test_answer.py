"""Answers of direct methods that fit."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.answer import MOST_BYTES, fit
from tests.strategies import PATIENT


@given(sizes=st.lists(st.integers(0, 40_000), max_size=12), why=st.lists(st.text(max_size=300), max_size=20))
@settings(max_examples=25, **PATIENT)
def test_an_answer_fits_keeps_the_first_and_counts_the_others(sizes: list[int], why: list[str]) -> None:
    campaigns: dict[str, Any] = {f"c{n}": {"when": "x" * size} for n, size in enumerate(sizes)}
    made = fit({"source": "s", "why": why, "campaigns": campaigns}, "why", "campaigns")
    assert len(msgspec.json.encode(made)) <= 128 << 10
    assert made["source"] == "s"
    assert made["why"] == why[: len(made["why"])]
    assert list(made["campaigns"].items()) == list(campaigns.items())[: len(made["campaigns"])]
    left_out = made.get("left_out", {})
    assert len(made["why"]) + left_out.get("why", 0) == len(why)
    assert len(made["campaigns"]) + left_out.get("campaigns", 0) == len(campaigns)
    if sum(sizes) + sum(len(msgspec.json.encode(line)) for line in why) < MOST_BYTES - 1000:
        assert not left_out

"""Every input of the fuzzing corpus, once, on the kernels as they are built: what once failed does not again."""

import pytest

from tests.fuzz.targets import CORPUS, TARGETS, run

INPUTS = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_is_read_or_refused_in_one_line(name: str) -> None:
    read = [run(name, path.read_bytes()) for path in INPUTS if path.parent.name == name]
    assert any(read)


def test_no_input_is_without_a_target() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in INPUTS) < 512 * 1024

"""Run by tests/arm64/run on the emulated processor: the suites named, with few examples of each property.

An emulated processor is about ten times slower, and the properties hold here for the same C as on amd64: what is looked
for is what another compiler and processor do differently, and the golden blocks show most of that.
"""

import os
import platform
import sys
from typing import Any

import hypothesis
import pytest

EXAMPLES = 5
SLOW = (
    "tests/test_codec.py::test_a_trained_table_makes_another_drive_of_the_same_car_smaller"  # a minute, of compression
)


class Fewer(hypothesis.settings):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        examples = min(options.pop("max_examples", EXAMPLES), EXAMPLES)
        options["deadline"] = None
        super().__init__(*arguments, max_examples=examples, **options)


def main(suites: list[str]) -> int:
    import cy_core.codec.signals as kernel

    if platform.machine() != "aarch64" or "aarch64" not in str(kernel.__file__):
        print(f"arm64: this is {platform.machine()} with {kernel.__file__}", file=sys.stderr)
        return 1
    os.environ["BORDNETZ_DATA"] = "/nowhere"  # recordings take their time, and are for the amd64 suite
    hypothesis.settings.register_profile("few", max_examples=EXAMPLES, deadline=None)
    hypothesis.settings.load_profile("few")
    hypothesis.settings = Fewer  # type: ignore[misc]
    files = [f"tests/test_{name}.py" for name in suites]
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "--deselect", SLOW, *files]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

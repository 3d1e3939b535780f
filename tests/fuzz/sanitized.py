"""The kernels as `EDGE_SANITIZE=1` builds them, in front of the others; `make sanitize` runs tests with them.

    python -m tests.fuzz.sanitized tests/test_decode.py …

Everything takes ten times as long: so without recordings, unless SANITIZE_DATA says where they are, and with few
examples of each property. What the sanitizers say goes to out/sanitize, as pytest holds back what a process that dies
has written.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

EXAMPLES = 10
KERNELS = Path("build/sanitize").absolute()
REPORTS = Path("out/sanitize").absolute()


def missing() -> str:
    """What is not here, and where it comes from; empty: nothing."""
    if importlib.util.find_spec("atheris") is None:
        return "atheris (pip install atheris)"
    if not any(KERNELS.glob("cy_core/*.so")):
        return "clang (apt-get install clang)"
    return ""


def environment(reports: Path | None = None) -> dict[str, str]:
    """Of a process that can load those kernels. Reports go to files of that name, or to standard error."""
    library = Path(importlib.util.find_spec("atheris").origin).parent.parent / "asan_with_fuzzer.so"  # type: ignore
    options = "detect_leaks=0:quarantine_size_mb=16:print_stacktrace=1:halt_on_error=1:allocator_may_return_null=1"
    if reports:
        options += f":log_path={reports}"
    return os.environ | {
        "LD_PRELOAD": str(library),
        "PYTHONMALLOC": "malloc",  # each object by itself, so that a read behind its end is seen
        "BORDNETZ_DATA": os.environ.get("SANITIZE_DATA", "none"),
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": options,
    }


def use() -> None:
    import cy_core
    import cy_core.codec
    import tests.fuzz

    for package in (cy_core, cy_core.codec, tests.fuzz):
        package.__path__.insert(0, str(KERNELS.joinpath(*package.__name__.split("."))))
    import cy_core.crc32c

    assert Path(cy_core.crc32c.__file__).is_relative_to(KERNELS), "imported before"


def pytest_configure() -> None:
    use()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test = getattr(item, "obj", None)
        if known := getattr(test, "_hypothesis_internal_use_settings", None):
            test._hypothesis_internal_use_settings = settings(known, max_examples=min(known.max_examples, EXAMPLES))


def main(arguments: list[str]) -> int:
    if missing():
        print(f"sanitize: skipped, there is no {missing()}", file=sys.stderr)
        return 0
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.fuzz.sanitized", *arguments]
    failed = subprocess.run(command, env=environment(REPORTS / "report"), check=False).returncode
    for report in sorted(REPORTS.iterdir()):
        print(f"\n{report}:\n{report.read_text(errors='replace')[:4000]}", file=sys.stderr)
        failed = failed or 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One target under libFuzzer, in a process of its own: `python -m tests.fuzz.drive TARGET [flags and corpora]`.

atheris is libFuzzer with Python in it: it sees the branches of the kernels, which clang instrumented, and those of the
Python code that is imported here.
"""

import sys

import atheris

from tests.fuzz import sanitized

INSTRUMENTED = ["edge"]
OF_DATABASES = ["cantools", "textparser"]  # takes two seconds


def main(name: str, flags: list[str]) -> None:
    sanitized.use()
    with atheris.instrument_imports(include=INSTRUMENTED + OF_DATABASES * (name == "database")):
        from tests.fuzz import targets
    atheris.Setup([sys.argv[0], *flags], lambda data: targets.run(name, data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

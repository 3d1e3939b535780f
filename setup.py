"""Builds cy_core, and nothing else; pyproject.toml has the rest.

EDGE_DEBUG=1      bounds checks and line tracing for coverage, -O0
EDGE_SANITIZE=1   for `make fuzz` and `make sanitize`: AddressSanitizer, UndefinedBehaviorSanitizer and libFuzzer's
                  coverage, with CC=clang; into --build-lib, as the result only loads beside the library of atheris
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("EDGE_DEBUG") == "1"
SANITIZE = os.environ.get("EDGE_SANITIZE") == "1"

# No contraction: a fused multiply-add would round physical values differently on arm64.
flags = ["-O0" if DEBUG else "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wno-unused-function"]
links = ["-Wl,-s"]
macros = [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")] if DEBUG else []
if SANITIZE:
    flags += ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=fuzzer-no-link,address,undefined"]
    flags += ["-fno-sanitize-recover=undefined"]
    links = []

directives = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "linetrace": DEBUG,
    "embedsignature": True,
}

extensions = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        depends=[str(header) for header in sorted(Path("cy_core").glob("*.h"))],
        include_dirs=["cy_core"],
        extra_compile_args=flags,
        extra_link_args=links,
        define_macros=macros,
    )
    for path in sorted([*Path("cy_core").rglob("*.pyx"), *(Path("tests/fuzz").glob("*.pyx") if SANITIZE else ())])
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives=directives,
        nthreads=os.cpu_count() or 1,
        # Reports name lines of the .pyx, and the sources of the other build stay as they are.
        **({"emit_linenums": True, "build_dir": "build/sanitize/c"} if SANITIZE else {}),
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)

"""What holds for every test."""

import os

from hypothesis import settings

# No test fails because the machine is slow. CI takes the same examples each time; here and in fuzzing they are new.
settings.register_profile("bordnetz", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("bordnetz")

"""What holds for every test."""

import os

from hypothesis import settings

# No test is slow because the machine is. CI takes the same examples each time: new ones are sought here, and by `make fuzz`.
settings.register_profile("bordnetz", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("bordnetz")

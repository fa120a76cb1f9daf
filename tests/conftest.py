"""What all tests share: where the helpers lie, and how generated cases are drawn."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

# Without packages in `tests/`, helpers are imported by their file's name from anywhere below it.
for room in ("reference", "live", "browser"):
    sys.path.insert(0, str(Path(__file__).parent / room))

# The gate draws the same cases in every run; `--hypothesis-profile random`, which `make test-all` sets,
# draws new ones. How long a case may take depends on the machine, so no profile says.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("same")

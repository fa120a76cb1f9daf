"""What all tests share: where the helpers lie."""

from __future__ import annotations

import sys
from pathlib import Path

# Without packages in `tests/`, helpers are imported by their file's name from anywhere below it.
for room in ("reference", "live"):
    sys.path.insert(0, str(Path(__file__).parent / room))

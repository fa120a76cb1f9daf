"""Puts this folder's helper within reach, as the conftest above does for shared helpers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

"""Parameters of every method that the reference knows, and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import act_reference
import eviction_definition
import vision_definition
from reference_scopes import REQUIRED

# Parameters and their defaults. What is not listed here is refused, so that a test with a field
# that this file does not know cannot pass by comparing two plain runs.
PARAMETERS: dict[str, dict[str, Any]] = {
    "zerotuning": {"gamma": REQUIRED, "position": 0, "layers": "all", "heads": "all"},
    "head_gain": {"gain": REQUIRED, "layers": "all", "heads": "all", "rows": "all"},
    "attention_scale": {"q_scale": REQUIRED, "layers": "all", "heads": "all"},
    "emphasis": {
        "spans": REQUIRED,
        "alpha": 0.01,
        "protect_positions": (0,),
        "layers": "all",
        "heads": "all",
        "rows": "all",
    },
    "locore": {"beta": 0.15, "window": 16, "include_prompt_tail": False, "layers": "all"},
    "act": act_reference.PARAMETERS,
    "streaming_llm": {"sinks": 4, "window": 1020, "positions": "rolling"},
    **eviction_definition.PARAMETERS,
    **vision_definition.PARAMETERS,
}


def with_defaults(intervention: Mapping[str, Any]) -> dict[str, Any]:
    """The intervention with every parameter written out."""
    method = intervention["method"]
    known = PARAMETERS[method]
    filled = {**known, **intervention}
    # What a report said, and that it was asked for, are no parameters.
    unknown = set(filled) - set(known) - {"method", "report", "kept", "kept_anywhere"}
    missing = {name for name, value in filled.items() if value is REQUIRED}
    if unknown or missing:
        raise ValueError(f"{method}: unknown {sorted(unknown)}, missing {sorted(missing)}")
    return filled

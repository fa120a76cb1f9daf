"""What reports say of the keys that a search has found: ACT's sinks."""

from collections.abc import Mapping
from typing import Any

from heed_server.engine.payload import POSITIONS

_DIGITS = 6


def of_all_ranks(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two tensor-parallel ranks' findings as one (`KeySearches.told`): each has heads of its own."""
    layers = one["counts"]
    merged: dict[str, Any] = {
        "counts": {layer: one["counts"][layer] + other["counts"][layer] for layer in layers},
        "positions": {
            layer: sorted({*one["positions"][layer], *other["positions"][layer]})
            for layer in layers
        },
        "moved": {layer: one["moved"][layer] + other["moved"][layer] for layer in layers},
        "heads": one["heads"],
        "rows": one["rows"],
    }
    if "keys" in one:
        merged["keys"] = {layer: one["keys"][layer] | other["keys"][layer] for layer in layers}
    return merged


def sink_counts(measured: Mapping[str, Any] | None) -> dict[str, Any]:
    """The report's part on sinks; empty for interventions that look for none."""
    found = (measured or {}).get("found")
    if found is None:
        return {}
    moved, heads, rows = found["moved"], found["heads"], found["rows"]
    report: dict[str, Any] = {
        "sinks": {str(layer): count for layer, count in found["counts"].items()},
        "sink_positions": {
            str(layer): keys[:POSITIONS] for layer, keys in found["positions"].items() if keys
        },
        "moved_mass": _mean(sum(moved.values()), rows * sum(heads.values())),
        "layer_moved_mass": {
            str(layer): _mean(mass, rows * heads[layer]) for layer, mass in moved.items()
        },
    }
    if "keys" in found:
        report["sink_keys"] = {
            str(layer): {str(head): keys for head, keys in heads.items()}
            for layer, heads in found["keys"].items()
            if heads
        }
    return report


def _mean(mass: float, count: int) -> float:
    return round(mass / count, _DIGITS) if count else 0.0

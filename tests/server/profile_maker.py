"""Profiles that the tests of this folder share."""

import json
from pathlib import Path
from typing import Any

from heed_interventions.views import ModelView
from heed_server.profiles.identity import ModelIdentity

VIEW = ModelView(layers=4, query_heads=8, kv_heads=2, head_dim=16, max_length=512)
MODEL = ModelIdentity(
    id="small", architecture="LlamaForCausalLM", layers=4, query_heads=8, kv_heads=2, head_dim=16,
    fingerprint="heed1:" + "0" * 64,
)  # fmt: skip


def document(name: str = "sentiment", **changes: Any) -> dict[str, Any]:
    """A whole `profile.json`."""
    return {
        "schema": 1,
        "name": name,
        "method": "zerotuning",
        "model": MODEL.model_dump(),
        "parameters": {"gamma": 2.0, "heads": {"1": [0, 3]}},
        "heed": "0.1.0",
    } | changes


def put(root: Path, name: str = "sentiment", text: str | None = None, **changes: Any) -> Path:
    """A profile's directory, or one whose document is `text`."""
    directory = root / name
    directory.mkdir(parents=True)
    written = json.dumps(document(name, **changes)) if text is None else text
    (directory / "profile.json").write_text(written)
    return directory

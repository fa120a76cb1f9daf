"""Profiles written so that nothing half-written is ever read."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from heed_server.profiles.profile import (
    DOCUMENT,
    NAME_RULE,
    TENSORS,
    Profile,
    ProfileError,
    is_profile_name,
)
from heed_server.whole_files import sync


def write_profile(
    root: Path,
    profile: Profile,
    tensors: Mapping[str, np.ndarray] | None = None,
    *,
    replace: bool = False,
) -> Path:
    """Write `profile` to the directory `root/<its name>`, which appears whole or not at all.

    Replacing takes two renames, between which there is none: a reader may find the name missing, and
    after a crash just there the former one lies in a hidden directory that ends in `.old`.

    tensors: float32 or float16, by name; their shapes stand in `profile.tensors`.
    replace: whether a profile of that name may be there already.

    Raises:
        ProfileError: its name is not usable, or taken.
    """
    if not is_profile_name(profile.name):
        raise ProfileError(f"{profile.name!r} is no name of a profile: {NAME_RULE}")
    root.mkdir(parents=True, exist_ok=True)
    target = root / profile.name
    if target.exists() and not replace:
        raise ProfileError(f"there is a profile {profile.name} already")
    # Beside the target, so that renaming it is one step; the dot keeps readers away.
    made = Path(tempfile.mkdtemp(prefix=f".{profile.name}.", dir=root))
    try:
        made.chmod(0o755)
        document = _lines(profile.model_dump(mode="json")) + "\n"
        (made / DOCUMENT).write_text(document, encoding="utf-8")
        if tensors:
            save_file(dict(tensors), made / TENSORS)
        # On the disk before it has its name: after a power cut the name must not stand for an empty file.
        for path in (*made.iterdir(), made):
            sync(path)
        if target.exists():
            old = made.with_name(made.name + ".old")
            target.rename(old)
            try:
                made.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    sync(root)
    return target


def _lines(value: Any, indent: str = "") -> str:
    """JSON in which a list of plain values takes one line, so that tables stay readable."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        parts = [f"{json.dumps(key)}: {_lines(item, inner)}" for key, item in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        parts = [_lines(item, inner) for item in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, ensure_ascii=False)
    joined = ",\n".join(inner + part for part in parts)
    return f"{opening}\n{joined}\n{indent}{closing}"

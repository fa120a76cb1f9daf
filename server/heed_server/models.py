"""The models that come with Heed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KV_CACHE_BYTES = 1 << 30

_DIRECTORY = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class BundledModel:
    """A model directory inside the installed package, in Hugging Face format."""

    name: str
    directory: Path

    def engine_options(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """vLLM's options it is served with where nobody asks for others.

        In float32, in which conformance is promised; uncompiled, because compiling takes longer than it
        will ever save on a model of this size; and with a KV cache of 1 GiB instead of nearly all memory,
        unless vLLM's variable says how large it is.
        """
        options: dict[str, Any] = {"dtype": "float32", "enforce_eager": True}
        if not environment.get("VLLM_CPU_KVCACHE_SPACE"):
            options["kv_cache_memory_bytes"] = KV_CACHE_BYTES
        return options

    @property
    def evaluation(self) -> Path:
        """Directory of its held-out evaluation sets (JSON lines)."""
        return self.directory / "evaluation"

    @property
    def profiles(self) -> Path | None:
        """Directory of the profiles that `heed calibrate` found for it; None where there are none."""
        path = self.directory / "profiles"
        return path if path.is_dir() else None


def bundled_models() -> list[BundledModel]:
    """All of them, by name."""
    return [
        BundledModel(path.name, path)
        for path in sorted(_DIRECTORY.iterdir())
        if (path / "config.json").is_file()
    ]


def bundled_model(name: str) -> BundledModel | None:
    """The bundled model of that name, or None."""
    return next((model for model in bundled_models() if model.name == name), None)

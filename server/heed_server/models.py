"""The models that come with Heed."""

from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class BundledModel:
    """A model directory inside the installed package, in Hugging Face format."""

    name: str
    directory: Path

    @property
    def evaluation(self) -> Path:
        """Directory of its held-out evaluation sets (JSON lines)."""
        return self.directory / "evaluation"

    @property
    def profiles(self) -> Path:
        """Directory of the profiles that `heed calibrate` found for it."""
        return self.directory / "profiles"


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

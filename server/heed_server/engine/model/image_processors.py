"""Transformers seam: LLaVA where torchvision is not installed.

vLLM's LLaVA imports Pixtral's module for a few functions, and with it Pixtral's image processor, which
needs torchvision, also where no Pixtral is served. transformers has the same processor on PIL in a
module of its own; without torchvision that one is imported in its place.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType

ON_TORCHVISION = "transformers.models.pixtral.image_processing_pixtral"
ON_PIL = "transformers.models.pixtral.image_processing_pil_pixtral"
_SUFFIX = "Pil"
"""What the names of classes on PIL end in, where those on torchvision do not."""


class PilLoader(Loader):
    """Loads the module on PIL under the other one's names."""

    def create_module(self, spec: ModuleSpec) -> None:
        """The ordinary empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fill it."""
        names = vars(import_module(ON_PIL))
        own = {name: value for name, value in names.items() if not name.startswith("__")}
        module.__dict__.update(own)
        module.__dict__.update({name.removesuffix(_SUFFIX): own[name] for name in own})


class PilFinder(MetaPathFinder):
    """Finds that one module, and nothing where transformers has no twin of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `MetaPathFinder`."""
        if fullname != ON_TORCHVISION or find_spec(ON_PIL) is None:
            return None
        return spec_from_loader(fullname, PilLoader())


def do_without_torchvision() -> None:
    """Put the finder in place where torchvision is missing; safe to call again. Imports nothing."""
    if find_spec("torchvision") is None and not any(
        isinstance(finder, PilFinder) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, PilFinder())

"""The methods that speak of images, on the dense attention of one layer, from their formulas. Shares no
code with Heed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from reference_scopes import REQUIRED, row_mask
from torch import Tensor

PARAMETERS: dict[str, dict[str, Any]] = {
    "pai": {"alpha": 0.5, "gamma": 1, "layers": None},
    "vaf": {"enh_para": 1.15, "sup_para": 1, "layers": None},
    "avar": {"alpha_img": 0.15, "alpha_sys": 0, "layers": "all", "rows": "after_image"},
    "adaptvis": {"w": REQUIRED, "layers": "all"},
}
"""As in `reference_parameters.PARAMETERS`; `layers` None are the method's own."""


@dataclass(frozen=True)
class Images:
    """Where a sequence's images lie.

    visual: bool [tokens], the tokens whose embeddings come from an image. The markers around them, if
        any, are told by `first` and `end`: positions of the first image's beginning and the last one's end.
    """

    visual: Tensor
    first: int
    end: int

    @classmethod
    def of(cls, visual: Tensor) -> Images:
        """Of a model whose images have no markers."""
        at = visual.nonzero()[:, 0].tolist()
        return cls(visual, at[0], at[-1] + 1) if at else cls(visual, 0, 0)

    @property
    def system(self) -> Tensor:
        """bool [tokens]: those before the first image."""
        return torch.arange(len(self.visual)) < self.first


def scales(edit: Mapping[str, Any], images: Images, prompt_length: int) -> tuple[Tensor, Tensor]:
    """c and a, each [rows, keys]: the logits s of the heads that are edited become c * s + a * |s|."""
    count = len(images.visual)
    factor, absolute = torch.ones(count, count), torch.zeros(count, count)
    row = torch.arange(count)
    match edit["method"]:
        case "pai":
            rows = row_mask("last_and_generated", count, prompt_length)
            absolute[rows[:, None] & images.visual] = edit["alpha"]
        case "vaf":
            rows = row >= images.end
            factor[rows[:, None] & images.visual] = edit["enh_para"]
            factor[rows[:, None] & images.system] = edit["sup_para"]
        case "avar":
            if edit["rows"] == "after_image":
                rows = row >= images.end
            else:
                rows = row_mask(edit["rows"], count, prompt_length)
            factor[rows[:, None] & images.visual] = 1 + edit["alpha_img"]
            factor[rows[:, None] & images.system] = 1 - edit["alpha_sys"]
        case "adaptvis":
            factor[(row == prompt_length - 1)[:, None] & images.visual] = edit["w"]
    return factor, absolute

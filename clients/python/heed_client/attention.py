"""A server's diagnostics of one prompt."""

import base64
import io
import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from heed_client.report import Report

if TYPE_CHECKING:
    import numpy

ARCHIVE = "application/x-npz"
"""What an answer with `encoding="npz"` comes as."""


class Attention(BaseModel):
    """The answer of `POST /v1/attention`. Measures that were not included are None.

    attention: [layers][heads][rows][keys]; column_mean: [layers][heads][keys]; q_similarity and vhd:
    [layers][heads]. The others are objects of such values by name. `array` reads values of any encoding.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str
    prompt_tokens: int
    continuation_tokens: int
    tokens: list[str] | None
    token_ids: list[int]
    layers: list[int]
    heads: list[int]
    rows: list[int]
    spans: list[list[int]]
    images: list[list[list[int]]] = []
    attention: Any = None
    column_mean: Any = None
    sink: dict[str, Any] | None = None
    mass: dict[str, Any] | None = None
    entropy: dict[str, Any] | None = None
    dormancy: dict[str, Any] | None = None
    waad: dict[str, Any] | None = None
    fai: dict[str, Any] | None = None
    q_similarity: Any = None
    vas: dict[str, Any] | None = None
    vhd: Any = None
    interventions: list[Report]

    def array(self, path: str) -> "numpy.ndarray[Any, Any]":
        """Values of a measure as float64, NaN where a number is not defined. Needs numpy.

        path: as an archive names them, `"attention"` or `"mass.position_0"`.

        Raises:
            KeyError: the answer has no such values.
        """
        import numpy

        measure, *inside = path.split(".")
        found = getattr(self, measure, None)
        for name in inside:
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, dict) and "data" in found:
            found = numpy.frombuffer(base64.b64decode(found["data"]), "<f4").reshape(found["shape"])
        if not isinstance(found, list | numpy.ndarray):
            raise KeyError(path)
        return numpy.asarray(found, float)

    def to_bertviz(self) -> dict[str, Any]:
        """Arguments of BertViz' `head_view` and `model_view`: `attention`, a float tensor
        [1, heads, rows, keys] for each layer, and `tokens`. Needs torch.

        Ask for all rows (`rows="all"`) and for `attention`.

        Raises:
            ValueError: there are other rows, no weights, or no tokens.
        """
        if self.rows != list(range(len(self.token_ids))):
            raise ValueError('BertViz shows every row: ask for rows="all"')
        if self.attention is None:
            raise ValueError('BertViz shows weights: include "attention"')
        if self.tokens is None:
            raise ValueError("BertViz shows tokens, and the server has no tokenizer")
        import torch

        layers = torch.tensor(self.array("attention"), dtype=torch.float32)
        return {"attention": list(layers[:, None]), "tokens": self.tokens}


def unpacked(archive: bytes) -> dict[str, Any]:
    """The answer that a numpy archive holds: its document, and float32 arrays where they stood in it.
    Needs numpy."""
    import numpy

    with numpy.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        answer: dict[str, Any] = json.loads(str(arrays["document"]))
        for path in set(arrays) - {"document"}:
            *outer, name = path.split(".")
            holder = answer
            for each in outer:
                holder = holder.setdefault(each, {})
            holder[name] = arrays[path]
    return answer

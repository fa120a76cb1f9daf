"""A server's diagnostics of one prompt."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from heed_client.report import Report


class Attention(BaseModel):
    """The answer of `POST /v1/attention`. Measures that were not included are None.

    attention: [layers][heads][rows][keys]; column_mean: [layers][heads][keys]. Those that are not
    fields here stand in `model_extra`.
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
    interventions: list[Report]

    def to_bertviz(self) -> dict[str, Any]:
        """Arguments of BertViz' `head_view` and `model_view`: `attention`, a float tensor
        [1, heads, rows, keys] for each layer, and `tokens`.

        Ask for all rows (`rows="all"`) and for `attention` in lists (`encoding="json"`).

        Raises:
            ValueError: there are other rows, no such lists, or no tokens.
        """
        if self.rows != list(range(len(self.token_ids))):
            raise ValueError('BertViz shows every row: ask for rows="all"')
        if not isinstance(self.attention, list):
            raise ValueError('BertViz shows weights: include "attention", in lists')
        if self.tokens is None:
            raise ValueError("BertViz shows tokens, and the server has no tokenizer")
        import torch

        layers = [torch.tensor(layer, dtype=torch.float32)[None] for layer in self.attention]
        return {"attention": layers, "tokens": self.tokens}

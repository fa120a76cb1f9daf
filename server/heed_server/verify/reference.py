"""ZeroTuning in transformers: float32, dense, without a cache, sharing nothing with Heed.

    a'_0 = gamma a_0 / D,   a'_k = a_k / D,   D = 1 + (gamma - 1) a_0

in every layer and head (Han et al., arXiv 2505.11739, Eq. 3).
"""

from collections.abc import Sequence
from typing import Any

_NAME = "heed_verify"


class Reference:
    """A model whose attention is written out.

    Raises:
        OSError, ValueError: transformers cannot load it.
    """

    def __init__(self, model: str, gamma: float) -> None:
        import torch
        from transformers import AttentionInterface, AutoModelForCausalLM

        AttentionInterface.register(_NAME, _attention(gamma))
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation=_NAME
        ).eval()

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Of the answer's tokens, one after another behind the prompt."""
        torch = self._torch
        rows = torch.tensor([[*prompt, *answer][:-1]])
        with torch.inference_mode():
            logits = self._model(rows, use_cache=False).logits[0, len(prompt) - 1 :]
        chosen = torch.tensor(list(answer))[:, None]
        found: list[float] = logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        return found


def _attention(gamma: float) -> Any:
    import torch

    def attend(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **rest: Any
    ) -> tuple[Any, None]:
        """query: [1, query_heads, rows, head_dim]; key, value: [1, kv_heads, rows, head_dim]."""
        group = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
        rows = query.shape[2]
        later = torch.ones(rows, rows, dtype=torch.bool).triu(1)
        logits = (query @ key.transpose(2, 3)) * scaling
        weights = logits.masked_fill(later, -torch.inf).softmax(-1)
        factor = torch.ones(rows)
        factor[0] = gamma
        weights = weights * factor
        weights = weights / weights.sum(-1, keepdim=True)
        return (weights @ value).transpose(1, 2).contiguous(), None

    return attend

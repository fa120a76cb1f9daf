"""A model that two servers are started with: by its name or path, a bundled one as `heed serve` starts it."""

from dataclasses import dataclass

from heed_server.models import bundled_model


@dataclass(frozen=True)
class MeasuredModel:
    """path: what vLLM is given. flags: that it needs. vocabulary: ids that prompts can be drawn from.
    longest: tokens that a request may have."""

    path: str
    flags: list[str]
    vocabulary: int
    longest: int


def served(model: str, tokens: int, requests: int) -> MeasuredModel:
    """`model` with room for requests of so many tokens, and so many at once.

    Raises:
        OSError, ValueError: it is not known, or its configuration cannot be read.
    """
    from transformers import AutoConfig

    bundled = bundled_model(model)
    path = str(bundled.directory) if bundled is not None else model
    config = AutoConfig.from_pretrained(path).get_text_config()
    # A token more: vLLM wants room behind the last one.
    longest = min(tokens + 1, getattr(config, "max_position_embeddings", tokens + 1))
    flags = ["--max-model-len", str(longest), "--max-num-seqs", str(max(requests, 2))]
    if bundled is not None:
        # As flags, because one of the two servers is stock vLLM, which knows no bundled model.
        for name, value in bundled.engine_options({}).items():
            flag = "--" + name.replace("_", "-")
            flags += [flag] if value is True else [flag, str(value)]
    return MeasuredModel(path, flags, int(config.vocab_size), longest)

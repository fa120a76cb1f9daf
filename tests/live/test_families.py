"""Other architectures than the bundled one: random weights, equal to the reference all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conformance import ALL_CASES, assert_conforms
from live_server import LiveServer, serving
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

pytestmark = pytest.mark.slow

FLAGS = ["--dtype", "float32", "--enforce-eager", "--allow-privileged-interventions"]
# Shapes differ on purpose: biases, norms of heads, one KV head, as many KV heads as query heads.
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, int]]] = {
    "llama": (LlamaConfig, {"num_key_value_heads": 8, "head_dim": 64}),
    "mistral": (MistralConfig, {"num_key_value_heads": 1, "head_dim": 32}),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 4}),
    "qwen3": (Qwen3Config, {"num_key_value_heads": 2, "head_dim": 64}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family_server(
    request: pytest.FixtureRequest, server: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server of a random model of one family, with the tokenizer of the shared server's."""
    directory: Path = tmp_path_factory.mktemp(request.param)
    config_type, shape = FAMILIES[request.param]
    config = config_type(
        vocab_size=len(AutoTokenizer.from_pretrained(server.model_dir)),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=1024,
        initializer_range=0.08,
        sliding_window=None,
        **shape,
    )
    torch.manual_seed(11)
    MODEL_FOR_CAUSAL_LM_MAPPING[config_type](config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(server.model_dir).save_pretrained(directory)
    with serving(directory / "server.log", FLAGS, str(directory)) as started:
        yield started


@pytest.mark.parametrize("length", [1, 63, 129])
@pytest.mark.parametrize("case", ["plain", *ALL_CASES])
def test_an_edited_request_of_another_family_equals_the_reference(
    family_server: LiveServer, case: str, length: int
) -> None:
    prompt = family_server.prompt(length)
    edits = [] if case == "plain" else ALL_CASES[case](length)
    completion = family_server.fresh(prompt, edits, prompt_logprobs=True)
    assert_conforms(family_server, prompt, edits, completion)

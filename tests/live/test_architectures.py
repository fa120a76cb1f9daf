"""Scaled rotary embeddings and Gemma are edited; attention that is not standard is refused.

Random weights. `test_families.py` has the whole matrix on the common families.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import ALL_CASES, assert_conforms
from live_server import FLAGS, serving
from transformers import AutoConfig, AutoModelForCausalLM

from heed_server.models import bundled_model

pytestmark = pytest.mark.slow

SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.08,
    "tie_word_embeddings": True,
}
EDITABLE: dict[str, dict[str, Any]] = {
    "llama": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        }
    },
    "gemma": {"num_key_value_heads": 1},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mistral": ({"sliding_window": 64}, "sliding window"),
    "gemma2": ({}, "sliding window"),
}
SAMPLE = ("zerotuning of some heads", "streaming", "everything together")


def model_of(directory: Path, kind: str, **changed: Any) -> Path:
    """A model directory with random weights and heed-tiny's tokenizer."""
    bundled = bundled_model("heed-tiny")
    assert bundled is not None
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SHAPE | changed))
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled.directory / name, directory / name)
    return directory


@pytest.mark.parametrize("kind", EDITABLE)
def test_edits_conform_on_other_architectures(tmp_path: Path, kind: str) -> None:
    model = model_of(tmp_path / kind, kind, **EDITABLE[kind])
    with serving(tmp_path / "server.log", FLAGS, str(model)) as server:
        prompt = server.prompt(150)
        for case in SAMPLE:
            edits = ALL_CASES[case](len(prompt))
            completion = server.complete(prompt, edits, prompt_logprobs=True)
            assert_conforms(server, prompt, edits, completion)


@pytest.mark.parametrize("kind", REFUSED)
def test_other_attention_is_served_plain_and_refused_edited(tmp_path: Path, kind: str) -> None:
    changed, words = REFUSED[kind]
    model = model_of(tmp_path / kind, kind, **changed)
    with serving(tmp_path / "server.log", FLAGS, str(model)) as server:
        assert server.raw_completion("Once upon a time").status_code == 200
        refused = server.raw_completion(
            "Once", interventions=[{"method": "zerotuning", "gamma": 2}]
        )
        assert refused.status_code == 400, refused.text
        assert words in refused.json()["error"]["message"]
        neutral = server.raw_completion(
            "Once", interventions=[{"method": "zerotuning", "gamma": 1}]
        )
        assert neutral.status_code == 200
        entry = server.client.get("/v1/interventions/zerotuning").json()
        assert entry["available"] is False and words in entry["reason"]

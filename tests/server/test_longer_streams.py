from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from heed_server.api.context_length import context_length, let_requests_differ
from heed_server.engine.model.longer_streams import (
    StreamingLengthError,
    check_streaming_length,
    lengthen,
    lengthen_rotary_tables,
    room_for_streams,
)
from heed_server.engine.model.model_support import rope_of
from heed_server.settings import STREAMING_VARIABLE, Settings, SettingsError

TRAINED, LONGER = 256, 1000
SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default", "rope_theta": 10000.0},
    "half of the dimensions": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}


def rotary(scaling: dict[str, Any]) -> RotaryEmbeddingBase:
    # A style of its own for each test: vLLM keeps modules that were made alike.
    get_rope.__globals__["_ROPE_DICT"].clear()
    return get_rope(64, max_position=TRAINED, rope_parameters=dict(scaling), dtype=torch.float32)


@pytest.mark.usefixtures("default_vllm_config")
@pytest.mark.parametrize("name", SCALINGS)
def test_a_longer_table_has_the_bits_of_the_old_one_and_goes_on_as_its_class_does(
    name: str,
) -> None:
    module = rotary(SCALINGS[name])
    before, trained = module.cos_sin_cache.clone(), module.max_position_embeddings
    frequencies = rope_of(module)
    assert frequencies is not None
    lengthen(module, LONGER)
    table = module.cos_sin_cache
    assert len(table) >= LONGER and torch.equal(table[: len(before)], before)
    assert module.max_position_embeddings == trained
    after = rope_of(module)
    assert after is not None and (after.inv_freq == frequencies.inv_freq).all()
    # Past the end: the angle is position times frequency, in float32 as the class has it.
    angle = torch.arange(LONGER)[:, None].float() * torch.from_numpy(frequencies.inv_freq).float()
    cos, sin = table[:LONGER].chunk(2, dim=-1)
    scale = getattr(module, "mscale", 1.0)
    torch.testing.assert_close(cos, angle.cos() * scale, atol=1e-6, rtol=0)
    torch.testing.assert_close(sin, angle.sin() * scale, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("default_vllm_config")
def test_a_plain_table_equals_the_one_of_a_model_that_was_made_longer() -> None:
    module = rotary(SCALINGS["plain"])
    lengthen(module, LONGER)
    get_rope.__globals__["_ROPE_DICT"].clear()
    made = get_rope(
        64, max_position=LONGER, rope_parameters=dict(SCALINGS["plain"]), dtype=torch.float32
    )
    assert torch.equal(module.cos_sin_cache, made.cos_sin_cache)


@pytest.mark.usefixtures("default_vllm_config")
def test_a_table_that_is_long_enough_is_left_alone() -> None:
    module = rotary(SCALINGS["plain"])
    table = module.cos_sin_cache
    lengthen(module, TRAINED)
    assert module.cos_sin_cache is table


@pytest.mark.usefixtures("default_vllm_config")
def test_frequencies_that_depend_on_the_length_are_refused() -> None:
    with pytest.raises(StreamingLengthError, match="Dynamic"):
        lengthen(rotary(DYNAMIC), LONGER)


def test_a_model_without_rotary_embeddings_is_refused() -> None:
    with pytest.raises(StreamingLengthError, match="none"):
        lengthen_rotary_tables(nn.Linear(2, 2), LONGER)


@pytest.mark.parametrize(("length", "on_cpu", "word"), [(100, True, "more"), (300, False, "CPU")])
def test_lengths_that_cannot_be_had_are_refused(
    monkeypatch: pytest.MonkeyPatch, length: int, on_cpu: bool, word: str
) -> None:
    config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=200))
    check_streaming_length(config, on_cpu=False)
    monkeypatch.setenv(STREAMING_VARIABLE, str(length))
    with pytest.raises(StreamingLengthError, match=word):
        check_streaming_length(config, on_cpu=on_cpu)


def test_a_runner_is_made_with_room_and_the_configuration_keeps_its_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = SimpleNamespace(max_model_len=200)
    with room_for_streams(config):
        assert config.max_model_len == 200
    monkeypatch.setenv(STREAMING_VARIABLE, "500")
    with room_for_streams(config):
        assert config.max_model_len == 500
    assert config.max_model_len == 200


def test_the_length_of_a_configuration_is_that_of_the_request_at_hand() -> None:
    class Config:
        def __init__(self) -> None:
            self.max_model_len = 200

    config = Config()
    let_requests_differ(config)
    let_requests_differ(config)
    assert config.max_model_len == 200
    with context_length(500):
        assert config.max_model_len == 500
        with context_length(None):
            assert config.max_model_len == 200
    config.max_model_len = 100
    assert config.max_model_len == 100 and isinstance(config, Config)


def test_the_length_is_read_from_the_environment() -> None:
    assert Settings.from_environment({}).max_streaming_length is None
    assert Settings.from_environment({STREAMING_VARIABLE: "9"}).max_streaming_length == 9
    with pytest.raises(SettingsError, match="number"):
        Settings.from_environment({STREAMING_VARIABLE: "much"})

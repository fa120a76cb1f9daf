"""Which dimensions of the hidden state stand out: the rule, and on the bundled model."""

import numpy as np
import pytest

from heed_server.calibrate.errors import CalibrationError
from heed_server.calibrate.sink_dimensions import hidden_states, magnitudes, standing_out
from heed_server.cli import main

HIDDEN, LAYERS = 64, 4


def states(*large: int, layers: int = LAYERS) -> np.ndarray:
    """One first token's hidden states, `large` dimensions 100 times as large in so many layers."""
    found = np.random.default_rng(0).standard_normal((1, LAYERS, HIDDEN)).astype(np.float32)
    found[0, :layers, list(large)] = 100
    return found


def test_magnitudes_are_relative_to_the_root_mean_square() -> None:
    x = np.array([[[3.0, -4.0, 0.0, 0.0]]], np.float32)
    np.testing.assert_allclose(magnitudes(x), [[[1.2, 1.6, 0, 0]]], rtol=1e-6)
    np.testing.assert_allclose(magnitudes(1000 * x), [[[1.2, 1.6, 0, 0]]], rtol=1e-6)
    assert not magnitudes(np.zeros((1, 1, 4), np.float32)).any()


@pytest.mark.parametrize("layers, kept", [(4, [5, 40]), (2, [5, 40]), (1, [])])
def test_half_of_the_layers_are_enough(layers: int, kept: list[int]) -> None:
    phi = magnitudes(states(5, 40, layers=layers))
    if kept:
        assert standing_out(phi, np.array([3]), 5) == kept
    else:
        with pytest.raises(CalibrationError, match=r"--tau 5; the largest"):
            standing_out(phi, np.array([3]), 5)


def test_first_tokens_weigh_as_many_prompts_as_begin_with_them() -> None:
    phi = magnitudes(np.concatenate([states(5), states(40)]))
    assert standing_out(phi, np.array([2, 1]), 5) == [5]
    assert standing_out(phi, np.array([1, 1]), 5) == [5, 40]


def test_hidden_states_are_those_of_the_middle_layers_in_any_prompt() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from heed_server.models import bundled_model

    found = hidden_states("heed-tiny", [1, 7])
    assert found.shape == (2, 3, 192)
    bundled = bundled_model("heed-tiny")
    assert bundled is not None
    model = AutoModelForCausalLM.from_pretrained(bundled.directory, dtype=torch.float32)
    with torch.inference_mode():
        whole = model(torch.tensor([[7, 30, 31, 32]]), output_hidden_states=True).hidden_states
    for layer in (2, 3, 4):
        np.testing.assert_allclose(found[1, layer - 2], whole[layer][0, 0].numpy(), atol=1e-4)


def test_a_name_that_is_a_path_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["calibrate", "var", "--task", "needle", "--name", "../x", "--out", "profiles"])
    assert "is no name of a profile" in capsys.readouterr().err

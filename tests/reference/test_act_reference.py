"""ACT's part of the reference: the formula, its invariants, and what depends on what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from act_reference import PARAMETERS, calibrated, margin_to, segments, sinks_of
from test_reference import PROMPT, distance, tiny_model, tokens
from transformers_reference import Reference


@pytest.fixture(scope="module")
def reference() -> Reference:
    return tiny_model(layers=4)


def act(**fields: Any) -> dict[str, Any]:
    return {**PARAMETERS, "layers": "all", **fields, "method": "act"}


def weights_with_sinks(rows: int = 60) -> torch.Tensor:
    """`[2, rows, rows]`, causal; keys 0, 7 and 20 draw attention."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, rows, rows, generator=generator, dtype=torch.float64)
    logits[:, :, [0, 7, 20]] += 3
    mask = torch.ones(rows, rows).tril().bool()
    return logits.masked_fill(~mask, -torch.inf).softmax(-1)


def test_sinks_keep_beta_and_the_rest_shares_what_they_give() -> None:
    plain = weights_with_sinks()
    edited, _ = calibrated(plain, act(tau=0.1, min_rows=5, beta=0.3), [1], 0, 60)
    assert torch.equal(edited[0], plain[0])
    assert torch.allclose(edited.sum(-1), torch.ones(2, 60, dtype=torch.float64))
    assert torch.allclose(edited[1, :, [7, 20]], 0.3 * plain[1, :, [7, 20]])
    rest = [key for key in range(60) if key not in (7, 20)]
    mass = plain[1, :, [7, 20]].sum(-1, keepdim=True)
    expected = plain[1, :, rest] * (1 - 0.3 * mass) / (1 - mass)
    assert torch.allclose(edited[1, :, rest], expected)
    assert edited[1, 0, 0] == 1


def test_the_first_flagged_key_is_spared_or_position_0_is() -> None:
    plain = weights_with_sinks()
    ((_, first, _),) = segments(plain[0], act(tau=0.1, min_rows=5), 60)
    assert first == [7, 20]
    plain[0, 1:, 0] = 0
    plain[0] /= plain[0].sum(-1, keepdim=True)
    ((_, first, _),) = segments(plain[0], act(tau=0.1, min_rows=5), 60)
    ((_, zero, _),) = segments(plain[0], act(tau=0.1, min_rows=5, protect="position_0"), 60)
    assert zero == [7, 20] and first == [20]


def weights_with_means(*means: float) -> torch.Tensor:
    """`[rows, rows]` whose keys have these means; they need not be weights."""
    return torch.tensor(means, dtype=torch.float64).expand(len(means), -1).tril()


@pytest.mark.parametrize(
    ("means", "fields", "there", "margin"),
    [
        # Key 3 is at the threshold, and both sides agree on it: no excuse for key 2.
        ((0.5, 0.3, 0.2, 0.1), {}, [1], 0.1),
        ((0.5, 0.3, 0.2, 0.1), {}, [1, 2, 3], 0.0),
        ((0.5, 0.3, 0.09, 0.0), {}, [1, 2], 0.01),
        ((0.5, 0.3, 0.11, 0.0), {}, [1], 0.01),
        ((0.5, 0.3, 0.11, 0.0), {}, [], 0.2),
        # The cut: keys 2 and 3 are far above the threshold and near each other.
        ((0.5, 0.4, 0.3, 0.29), {"max_sinks": 2}, [1, 3], 0.01),
        ((0.5, 0.4, 0.3, 0.29), {"max_sinks": 2}, [2, 3], 0.11),
        ((0.5, 0.4, 0.3, 0.29), {"max_sinks": 2}, [1], 0.2),
        ((0.5, 0.4, 0.3, 0.29), {"max_sinks": 2}, [1, 2, 3], float("inf")),
        # Which key is spared: key 0 is near the threshold, so key 1 may be the first above it.
        ((0.11, 0.3, 0.2, 0.0), {}, [2], 0.01),
        ((0.09, 0.3, 0.2, 0.0), {}, [1, 2], 0.01),
        ((0.5, 0.3, 0.2, 0.0), {}, [0, 1, 2], float("inf")),
        ((0.11, 0.3, 0.2, 0.0), {"protect": "position_0"}, [2], 0.2),
        ((0.11, 0.3, 0.2, 0.0), {"protect": "position_0"}, [0, 1, 2], float("inf")),
        ((0.5, 0.3, 0.2, 0.3), {"min_rows": 2}, [1, 2, 3], float("inf")),
    ],
)
def test_the_margin_is_what_the_means_are_away_from_other_sinks(
    means: tuple[float, ...], fields: dict[str, Any], there: list[int], margin: float
) -> None:
    edit = act(tau=0.1, **fields)
    assert margin_to(there, weights_with_means(*means), edit) == pytest.approx(margin, abs=1e-12)


def test_nothing_is_between_the_means_and_the_sinks_that_they_give() -> None:
    plain = weights_with_sinks()[0]
    for fields in ({}, {"max_sinks": 1}, {"protect": "position_0"}, {"tau": 0.02, "min_rows": 9}):
        edit = act(**fields)
        assert margin_to(sinks_of(plain, edit), plain, edit) == 0


@pytest.mark.parametrize(
    ("fields", "starts", "end"),
    [
        ({}, [0], 140),
        ({"decode": "off"}, [0], 100),
        ({"decode": "running"}, [0, *range(100, 140)], 140),
        ({"stats": "causal"}, [0, 32, 64, 100], 140),
        ({"stats": "causal", "decode": "off"}, [0, 32, 64], 100),
        ({"stats": "causal", "decode": "running"}, [0, 32, 64, *range(100, 140)], 140),
    ],
)
def test_rows_share_sinks_by_segment(fields: dict[str, Any], starts: list[int], end: int) -> None:
    parts = list(segments(weights_with_sinks(140)[0], act(**fields), 100))
    assert [rows.start for rows, _, _ in parts] == starts
    assert parts[-1][0].stop == end


@pytest.mark.parametrize("decode", ["frozen", "running"])
def test_causal_rows_do_not_change_when_more_rows_follow(reference: Reference, decode: str) -> None:
    edit = {"method": "act", "stats": "causal", "decode": decode, "tau": 0.03, "layers": "all"}
    ids = tokens(90)
    whole = reference.run(ids, 50, [edit])
    part = reference.run(ids[:70], 50, [edit])
    assert float((whole.logprobs[:70] - part.logprobs).abs().max()) < 2e-5
    longer = reference.run(ids, 80, [edit])
    assert float((whole.logprobs[:50] - longer.logprobs[:50]).abs().max()) < 2e-5
    assert distance(whole, reference.run(ids, 50)) > 1e-3


def test_a_beta_of_one_and_a_threshold_above_all_means_change_nothing(reference: Reference) -> None:
    plain = reference.run(tokens(40), PROMPT)
    for edit in ({"beta": 1}, {"tau": 1}):
        assert (
            distance(reference.run(tokens(40), PROMPT, [{"method": "act", **edit}]), plain) < 2e-5
        )


def test_other_sinks_are_taken_over_and_told(reference: Reference) -> None:
    edit = {"method": "act", "layers": [0], "beta": 0}
    free = reference.run(tokens(40), 40, [edit])
    told = reference.run(tokens(40), 40, [{**edit, "sinks": {0: {h: [5] for h in range(6)}}}])
    assert not free.disagreements and len(told.disagreements) >= 1
    assert float(told.weights[0][:, 6:, 5].abs().max()) == 0

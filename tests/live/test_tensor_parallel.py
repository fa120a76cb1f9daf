"""Two tensor-parallel workers: head ids are the whole model's, and the numbers stay."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from conformance import ALL_CASES, assert_close, longest_prompt
from live_server import FLAGS, LiveServer, serving

pytestmark = pytest.mark.slow

# Sums over heads are split between the ranks and added in another order; with a few keys left after an
# eviction that has been seen to make 1.1e-5 of a log-probability.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    flags = [*FLAGS, "--tensor-parallel-size", "2", "--allow-privileged-interventions"]
    # Reports count KV blocks, so blocks are as large as those of the other server.
    flags += ["--block-size", "32"]
    with pytest.MonkeyPatch.context() as patch:
        cores = sorted(os.sched_getaffinity(0))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        with serving(tmp_path_factory.mktemp("tp2") / "server.log", flags) as server:
            yield server


@pytest.mark.parametrize("case", ALL_CASES)
def test_two_ranks_equal_one(cramped_server: LiveServer, two_ranks: LiveServer, case: str) -> None:
    length = min(150, longest_prompt(cramped_server, ALL_CASES[case]))
    prompt = cramped_server.prompt(length, start=3)
    edits = ALL_CASES[case](len(prompt))
    one = cramped_server.fresh(prompt, edits)
    two = two_ranks.fresh(prompt, edits)
    assert one.tokens == two.tokens
    assert_close(two.logprobs, one.logprobs, TOLERANCE, case)
    # A measured weight is rounded, and may be rounded to the other side.
    for name, nothing in (("moved_mass", 0), ("layer_moved_mass", {})):
        moved = [[report.pop(name, nothing) for report in e.report or []] for e in (one, two)]
        for mine, other in zip(*moved, strict=True):
            assert mine == pytest.approx(other, abs=TOLERANCE), name
    assert one.report == two.report


def test_the_heads_of_both_ranks_are_inspected(
    cramped_server: LiveServer, two_ranks: LiveServer
) -> None:
    prompt = cramped_server.prompt(200, start=9)
    include = ["attention", "column_mean", "mass", "dormancy"]
    edits = [{"method": "zerotuning", "gamma": 3, "heads": [0, 4]}]
    for heads in ("all", [0], [1, 5]):
        body = {"prompt": prompt, "include": include, "heads": heads, "interventions": edits}
        answers = [
            server.post("/v1/attention", {"model": server.model, **body})
            for server in (cramped_server, two_ranks)
        ]
        assert [each.status_code for each in answers] == [200, 200], answers[1].text[:500]
        one, two = (each.json() for each in answers)
        assert one["heads"] == two["heads"]
        for part in ("attention", "column_mean"):
            np.testing.assert_allclose(two[part], one[part], rtol=0, atol=TOLERANCE)

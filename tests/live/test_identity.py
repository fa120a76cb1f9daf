"""Plain and neutral requests give the bits of stock vLLM, which runs beside in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conformance import CASES, Edits
from live_server import ENVIRONMENT, GEOMETRY, Completion, LiveServer, together

LENGTHS = [1, 2, 17, 63, 128, 129, 300, 500]
TOKENS = 20
NEUTRAL: dict[str, Edits | None] = {
    "no field": None,
    "an empty list": [],
    "zerotuning": [{"method": "zerotuning", "gamma": 1}],
    "head gain": [{"method": "head_gain", "gain": 1, "layers": [0], "rows": "generated"}],
    "attention scale": [{"method": "attention_scale", "q_scale": 1.0, "heads": {"1": [0]}}],
    "emphasis": [{"method": "emphasis", "alpha": 1, "spans": [{"start": 0, "end": 1}]}],
    "act": [{"method": "act", "beta": 1, "tau": 0.01, "layers": "all"}],
    "locore": [{"method": "locore", "beta": 0, "window": 3}],
    "several": [{"method": "zerotuning", "gamma": 1}, {"method": "locore", "beta": 0}],
}


@pytest.fixture(scope="module")
def stock(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What stock vLLM answers to the prompts of `LENGTHS`, one at a time."""
    directory: Path = tmp_path_factory.mktemp("stock")
    job = {
        "model": server.model_dir,
        "geometry": GEOMETRY,
        "requests": [{"prompt": server.prompt(n, n), "max_tokens": TOKENS} for n in LENGTHS],
    }
    (directory / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("stock_vllm.py")
    # An allow-list without a name in it: not even an installed Heed is loaded.
    environment = {**os.environ, **ENVIRONMENT, "VLLM_PLUGINS": ""}
    done = subprocess.run(
        [sys.executable, str(script), str(directory / "job.json"), str(directory / "answers.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "heed" not in done.stdout.lower().replace(server.model_dir.lower(), ""), "not stock"
    answers: list[dict[str, Any]] = json.loads((directory / "answers.json").read_text())
    return answers


def bits(logprobs: list[float | None]) -> list[str | None]:
    return [None if value is None else value.hex() for value in logprobs]


def assert_same_bits(completion: Completion, expected: dict[str, Any], what: str) -> None:
    assert completion.tokens == expected["tokens"], what
    assert bits([*completion.logprobs]) == expected["logprobs"], what
    if completion.prompt_logprobs:
        assert bits(completion.prompt_logprobs) == expected["prompt_logprobs"], what


@pytest.mark.parametrize("kind", NEUTRAL)
def test_plain_and_neutral_requests_give_the_bits_of_stock_vllm(
    server: LiveServer, stock: list[dict[str, Any]], kind: str
) -> None:
    for length, expected in zip(LENGTHS, stock, strict=True):
        prompt = server.prompt(length, length)
        completion = server.complete(prompt, NEUTRAL[kind], TOKENS, prompt_logprobs=True)
        assert_same_bits(completion, expected, f"{kind}, prompt of {length}")
        # An empty list and no field ask for nothing and are told nothing.
        statuses = [report["status"] for report in completion.report or []]
        assert statuses == ["neutral"] * len(NEUTRAL[kind] or [])


def test_a_window_that_hides_nothing_gives_the_log_probabilities_of_stock_vllm(
    server: LiveServer, stock: list[dict[str, Any]]
) -> None:
    for length, expected in zip(LENGTHS, stock, strict=True):
        edits = [{"method": "streaming_llm", "window": 600}]
        completion = server.complete(server.prompt(length, length), edits, TOKENS)
        exact = [float.fromhex(value) for value in expected["logprobs"]]
        assert completion.logprobs == pytest.approx(exact, abs=1e-5)


def test_plain_rows_keep_their_bits_in_batches_with_edited_neighbours(
    server: LiveServer, stock: list[dict[str, Any]]
) -> None:
    neighbours = [case(200 + i) for i, case in enumerate(CASES.values())]
    for _ in range(3):
        calls: list[Any] = []
        for i, length in enumerate(LENGTHS):
            prompt = server.prompt(length, length)
            calls.append(lambda prompt=prompt: server.fresh(prompt, max_tokens=TOKENS))
            for j in (2 * i, 2 * i + 1):
                beside = server.prompt(200 + j, j)
                calls.append(
                    lambda beside=beside, edits=neighbours[j]: server.fresh(
                        beside, edits, max_tokens=2 * TOKENS
                    )
                )
        answers = together(calls)[::3]
        for length, answer, expected in zip(LENGTHS, answers, stock, strict=True):
            assert_same_bits(answer, expected, f"prompt of {length}")


def test_a_prefix_hit_of_a_plain_request_keeps_its_bits(
    server: LiveServer, stock: list[dict[str, Any]]
) -> None:
    for length, expected in zip(LENGTHS, stock, strict=True):
        for _ in range(2):
            completion = server.complete(server.prompt(length, length), max_tokens=TOKENS)
            assert_same_bits(completion, expected, f"prompt of {length}")

"""The offline class gives the server's answers, errors and reports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live_server import ENVIRONMENT, LiveServer

PAGE = (Path(__file__).parents[2] / "docs" / "offline.md").read_text(encoding="utf-8")
MORE = """
    prompt = {"prompt_token_ids": json.loads(sys.argv[1])}
    params = SamplingParams(temperature=0, max_tokens=9, logprobs=1, ignore_eos=True, n=1)
    edits = json.loads(sys.argv[2])

    def told(output):
        (choice,) = output.outputs
        chosen = zip(choice.token_ids, choice.logprobs)
        return {
            "tokens": list(choice.token_ids),
            "logprobs": [step[token].logprob for token, step in chosen],
            "report": output.interventions,
        }

    def error_of(**asked):
        try:
            llm.generate([prompt, prompt], params, use_tqdm=False, **asked)
        except RefusedError as error:
            return [error.parameter, error.status]

    mixed = llm.generate([prompt] * 3, params, use_tqdm=False, interventions=[[], edits, None])
    two = SamplingParams(temperature=1, seed=1, max_tokens=5, n=2)
    (choices,) = llm.generate(prompt, two, use_tqdm=False, interventions=edits)
    found = {
        "mixed": [told(output) for output in mixed],
        "choices": [choice.interventions[0]["generated_rows"] for choice in choices.outputs],
        "errors": [
            error_of(interventions=[{"method": "nothing"}]),
            error_of(interventions=[{"method": "zerotuning", "gamma": 2, "layers": [99]}]),
            error_of(interventions=[{"method": "head_gain", "gain": 0}]),
            error_of(interventions=[[]]),
            error_of(interventions=[{"method": "zerotuning", "profile": "none"}]),
        ],
        "after": told(llm.generate(prompt, params, use_tqdm=False)[0]),
    }
    print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def printed(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines that the page's example prints, and those of what is done after it."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    script = tmp_path_factory.mktemp("offline") / "script.py"
    script.write_text("import json, sys\n" + example + MORE)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(server.prompt(60)), json.dumps(EDITS)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


EDITS: list[dict[str, Any]] = [
    {"method": "zerotuning", "gamma": 3},
    {"method": "snapkv", "keep": 0.5, "sinks": 4},
]


def test_the_page_s_example_runs(printed: list[str]) -> None:
    assert any(re.fullmatch(r"applied \d+", line) for line in printed)
    assert "interventions.0.gamma" in printed


@pytest.fixture(scope="module")
def found(printed: list[str]) -> dict[str, Any]:
    (line,) = [line for line in printed if line.startswith("FOUND ")]
    answer: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return answer


def test_answers_and_reports_are_those_of_the_server(
    server: LiveServer, found: dict[str, Any]
) -> None:
    prompt = server.prompt(60)
    plain, edited, missing = found["mixed"]
    for offline, of_server in (
        (plain, server.fresh(prompt, max_tokens=9)),
        (edited, server.fresh(prompt, EDITS, max_tokens=9)),
        (missing, server.fresh(prompt, max_tokens=9)),
    ):
        assert offline["tokens"] == of_server.tokens
        assert offline["logprobs"] == pytest.approx(of_server.logprobs, abs=1e-5)
    of_server = server.fresh(prompt, EDITS, max_tokens=9)
    assert edited["report"] == of_server.report
    assert plain["report"] == missing["report"] == []


def test_plain_prompts_keep_their_bits_beside_and_after_edited_ones(found: dict[str, Any]) -> None:
    plain, _, missing = found["mixed"]
    assert plain["logprobs"] == missing["logprobs"] == found["after"]["logprobs"]


def test_each_choice_has_its_own_report(found: dict[str, Any]) -> None:
    assert found["choices"] == [4, 4]


def test_errors_are_those_of_the_server(found: dict[str, Any]) -> None:
    assert found["errors"] == [
        ["interventions.0.method", 400],
        ["interventions.0.layers.0", 400],
        ["interventions.0.gain", 403],
        ["interventions", 400],
        ["interventions.0.profile", 404],
    ]

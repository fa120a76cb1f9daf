"""Heed under vLLM's own server, and servers whose settings leave no room for edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from live_server import FLAGS, LiveServer, serving

from heed_server.models import bundled_model

pytestmark = pytest.mark.slow

EDIT: list[dict[str, Any]] = [{"method": "zerotuning", "gamma": 2}]
SPECULATION = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
NO_ROOM = {
    "quantised": ["--kv-cache-dtype", "fp8"],
    "speculative": ["--speculative-config", json.dumps(SPECULATION)],
}


def test_vllms_own_server_with_the_plugin_named_edits_attention(tmp_path: Path) -> None:
    model = bundled_model("heed-tiny")
    assert model is not None
    starter = ("vllm.entrypoints.launchers.api_server.entry", "--model", str(model.directory))
    with serving(
        tmp_path / "server.log", FLAGS, starter=starter, environment={"VLLM_PLUGINS": "heed"}
    ) as server:
        report = server.complete(server.prompt(40), EDIT).report
        assert report is not None and report[0]["status"] == "applied"
        assert report[0]["prompt_rows"] == 40


@pytest.mark.parametrize("words", NO_ROOM)
def test_settings_that_leave_no_room_refuse_edits_and_serve_the_rest(
    tmp_path: Path, words: str
) -> None:
    with serving(tmp_path / "server.log", [*FLAGS, *NO_ROOM[words]]) as server:
        assert_refuses_edits_only(server, words)


def assert_refuses_edits_only(server: LiveServer, words: str) -> None:
    assert server.raw_completion("Once upon a time", max_tokens=8).status_code == 200
    neutral = server.raw_completion("Once", interventions=[{"method": "zerotuning", "gamma": 1}])
    assert neutral.status_code == 200
    refused = server.raw_completion("Once", interventions=EDIT)
    assert refused.status_code == 400, refused.text
    assert words in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"].startswith("interventions.0")


def test_a_server_that_embeds_refuses_interventions(tmp_path: Path) -> None:
    flags = ["--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    with serving(tmp_path / "server.log", flags) as server:
        body = {"model": server.model, "input": "Once upon a time"}
        embedded = server.post("/v1/embeddings", body)
        assert embedded.status_code == 200, embedded.text
        refused = server.post("/v1/embeddings", {**body, "interventions": EDIT})
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == "interventions"

"""Heed under Ray Serve with two replicas: the application of deploy/ray/heed.yaml, in a local Ray on the CPU.

Skipped without Ray, which the extra `ray` installs.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from conformance import assert_close
from live_server import (
    ENVIRONMENT,
    FLAGS,
    ROOT,
    LiveServer,
    chunks_of,
    free_port,
    kill,
    started,
    tokens_in,
)
from test_faults import rest_of

pytest.importorskip("ray", reason="Ray is not at hand")
# Three engines and Ray's own processes start at once.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECONDS_TO_START = 900
SECONDS_TO_END = 120
EDIT: list[dict[str, Any]] = [{"method": "zerotuning", "gamma": 3}]
# The replicas share the cores in another way than one server does, and so add up in another order.
TOLERANCE = 2e-5
SETTINGS = {
    **ENVIRONMENT,
    # Two engines that are bound to the same cores would wait for each other.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    # Ray ends workers on a machine whose memory is full, whoever has filled it.
    "RAY_memory_monitor_refresh_ms": "0",
}


def config(folder: Path, port: int) -> Path:
    """The application's own file, with the flags of the other live tests."""
    read = yaml.safe_load((ROOT / "deploy" / "ray" / "heed.yaml").read_text())
    read["http_options"]["port"] = port
    read["applications"][0]["args"]["arguments"] += FLAGS
    path = folder / "heed.yaml"
    path.write_text(yaml.safe_dump(read))
    return path


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("ray")
    port = free_port()
    command = ["serve", "run", str(config(folder, port))]
    environment = {**os.environ, **SETTINGS}
    log = folder / "serve.log"
    with started(command, log, port, environment, SECONDS_TO_START) as server:
        assert server.process is not None
        processes = psutil.Process(server.process.pid).children(recursive=True)
        try:
            deadline = time.monotonic() + SECONDS_TO_START
            while len(replicas(server)) < 2:
                assert time.monotonic() < deadline, "the second replica does not come"
                time.sleep(2)
            yield server
            server.process.terminate()
            server.process.wait(SECONDS_TO_END)
            _, left = psutil.wait_procs(processes, timeout=SECONDS_TO_END)
            assert not left, [each.name() for each in left]
        finally:
            kill(server.process)
            for each in processes:
                if each.is_running():
                    each.kill()


def replicas(server: LiveServer) -> set[str]:
    """Those whose metrics the front finds."""
    page = server.client.get("/metrics").text
    return {
        line.partition('replica="')[2].partition('"')[0]
        for line in page.splitlines()
        if line.startswith("vllm:num_requests_running")
    }


def ask(server: LiveServer, prompt: list[int], **fields: Any) -> tuple[str, int]:
    """Which replica has answered, and how many tokens it had in its cache."""
    response = server.raw_completion(prompt, **fields)
    assert response.status_code == 200, response.text
    details = response.json()["usage"]["prompt_tokens_details"] or {}
    return response.headers["x-heed-replica"], details.get("cached_tokens") or 0


@pytest.mark.parametrize(
    "edits",
    [
        [],
        EDIT,
        [{"method": "snapkv", "budget": 32, "window": 8}],
        [{"method": "locore", "beta": 0.8}],
    ],
    ids=lambda edits: edits[0]["method"] if edits else "plain",
)
def test_answers_and_reports_are_those_of_heed_serve(
    server: LiveServer, two_replicas: LiveServer, edits: list[dict[str, Any]]
) -> None:
    prompt = server.prompt(150, start=7)
    one = server.fresh(prompt, edits)
    other = two_replicas.fresh(prompt, edits)
    assert other.tokens == one.tokens
    assert_close(other.logprobs, one.logprobs, TOLERANCE, str(edits))
    assert [e["method"] for e in other.report or []] == [e["method"] for e in edits]
    assert other.report == one.report


def test_a_refusal_crosses_with_its_path(two_replicas: LiveServer) -> None:
    edits = [{"method": "zerotuning", "gamma": -1}]
    response = two_replicas.raw_completion("Once", interventions=edits)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "interventions.0.gamma"
    assert two_replicas.client.get("/v1/interventions").json()["data"]


def test_a_stream_comes_in_parts_with_its_report(two_replicas: LiveServer) -> None:
    body = {"model": two_replicas.model, "prompt": "Once", "max_tokens": 20, "ignore_eos": True}
    body |= {"stream": True, "return_token_ids": True, "interventions": EDIT}
    with two_replicas.client.stream("POST", "/v1/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert tokens_in(lines) == 20 and len(chunks_of(lines)) > 2
    assert chunks_of(lines)[-1]["interventions"][0]["generated_rows"] == 19


def test_prompts_are_spread_and_equal_ones_meet_their_blocks(two_replicas: LiveServer) -> None:
    server = two_replicas
    prompts = [server.prompt(400, start=number) for number in range(20, 28)]
    first = [ask(server, prompt) for prompt in prompts]
    assert {replica for replica, _ in first} == replicas(server)
    again = [ask(server, prompt) for prompt in prompts]
    assert [replica for replica, _ in again] == [replica for replica, _ in first]
    assert all(cached >= 256 for _, cached in again)


def test_a_salt_or_an_edit_parts_the_cache_wherever_a_request_goes(
    two_replicas: LiveServer,
) -> None:
    server = two_replicas
    prompt = server.prompt(400, start=31)
    variants: list[dict[str, Any]] = [
        {},
        *({"cache_salt": secrets.token_hex(4)} for _ in range(3)),
        *({"interventions": [{"method": "zerotuning", "gamma": 2 + i}]} for i in range(3)),
    ]
    first = [ask(server, prompt, **fields) for fields in variants]
    assert [cached for _, cached in first] == [0] * len(variants)
    again = [ask(server, prompt, **fields) for fields in variants]
    assert [replica for replica, _ in again] == [replica for replica, _ in first]
    assert all(cached >= 256 for _, cached in again)


def test_a_client_that_leaves_ends_its_request(two_replicas: LiveServer) -> None:
    server = two_replicas
    body = {"model": server.model, "prompt": "Once", "max_tokens": 2000, "ignore_eos": True}
    body |= {"stream": True, "interventions": EDIT}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        next(response.iter_lines())
    deadline = time.monotonic() + 60
    names = ("vllm:num_requests_running", "heed_edit_table_rows")
    while any(server.metric(name) for name in names):  # over both replicas
        assert time.monotonic() < deadline, "it goes on for nobody"
        time.sleep(0.5)


def test_an_answer_that_its_replica_breaks_off_does_not_look_whole(
    two_replicas: LiveServer,
) -> None:
    """The last one: Serve starts both replicas anew."""
    server = two_replicas
    assert server.process is not None
    body = {"model": server.model, "prompt": "Once", "max_tokens": 2000, "ignore_eos": True}
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json=body | {"stream": True}, timeout=60
    ) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        for each in psutil.Process(server.process.pid).children(recursive=True):
            if "ServeReplica:heed:Engine" in " ".join(each.cmdline()):
                each.kill()
        tail = rest_of(lines)
    assert "data: [DONE]" not in tail
    assert tail[-1].startswith("cut: "), tail[-3:]

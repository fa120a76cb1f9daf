"""What happens when something breaks: no hang, no half-written file, nothing left behind.

docs/operations.md states these outcomes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from live_server import (
    ENVIRONMENT,
    FLAGS,
    LiveServer,
    chunks_of,
    free_port,
    serving,
    together,
    tokens_in,
)

pytestmark = pytest.mark.slow

EDIT: list[dict[str, Any]] = [{"method": "zerotuning", "gamma": 3}]
# From the death of a process to the end of the server and of all that it started.
SECONDS_TO_END = 60


def family(server: LiveServer) -> list[psutil.Process]:
    """The server's processes, itself first."""
    assert server.pid is not None
    main = psutil.Process(server.pid)
    return [main, *main.children(recursive=True)]


def named(server: LiveServer, words: str) -> psutil.Process:
    """The one process of the server whose title holds `words`."""
    found = [each for each in family(server) if words in " ".join(each.cmdline())]
    assert len(found) == 1, [each.cmdline() for each in family(server)]
    return found[0]


@contextmanager
def under_way(server: LiveServer, tokens: int = 2000) -> Iterator[Any]:
    """The lines of an edited stream that has begun and would go on for so many tokens, its first among them."""
    body = {"model": server.model, "prompt": "Once", "max_tokens": tokens, "ignore_eos": True}
    body |= {"stream": True, "return_token_ids": True, "interventions": EDIT}
    with server.client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        yield chain([next(lines)], lines)


def rest_of(lines: Any) -> list[str]:
    """What comes; a connection that is cut ends it."""
    found = []
    try:
        for line in lines:
            found.append(line)
    except httpx.HTTPError as error:
        found.append(f"cut: {type(error).__name__}")
    return found


def ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes[1:], timeout=SECONDS_TO_END)
    return not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("words", ["VLLM::EngineCore", "VLLM::Worker"])
def test_a_killed_engine_process_fails_requests_and_ends_the_server(
    tmp_path: Path, words: str
) -> None:
    with serving(tmp_path / "server.log", FLAGS) as server:
        processes = family(server)
        with under_way(server) as lines:
            named(server, words).kill()
            tail = rest_of(lines)
        assert any(line.startswith('data: {"error"') for line in tail), tail[-3:]
        assert not any('"interventions"' in line for line in tail)
        assert server.process is not None
        assert server.process.wait(SECONDS_TO_END) == 1, "a supervisor has to see that it failed"
        assert ended(processes), "something of the server is left"
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url}/health", timeout=5)


def test_a_killed_api_process_takes_its_engine_along_and_the_next_one_answers_the_same(
    tmp_path: Path,
) -> None:
    port = free_port()
    with serving(tmp_path / "first.log", FLAGS, port=port) as server:
        prompt = server.prompt(80)
        first = server.fresh(prompt, EDIT)
        processes = family(server)
        with under_way(server) as lines:
            processes[0].kill()
            rest_of(lines)
        assert server.process is not None
        assert server.process.wait(SECONDS_TO_END) == -signal.SIGKILL
        assert ended(processes), "engine and workers outlive the API process"
    with serving(tmp_path / "second.log", FLAGS, port=port) as server:
        again = server.fresh(prompt, EDIT)
    assert (again.tokens, again.logprobs) == (first.tokens, first.logprobs)


def assert_takes_no_more(server: LiveServer) -> None:
    """New requests are told so, plain and edited ones, and so is whoever asks for its health."""
    deadline = time.monotonic() + SECONDS_TO_END
    while server.client.get("/health").status_code == 200:
        assert time.monotonic() < deadline, "it does not drain"
        time.sleep(0.05)
    # First of all: the stream ends soon.
    assert server.metric("vllm:num_requests_running") == 1, "the drain can be seen"
    answers = [
        server.client.get("/health"),
        server.client.get("/v1/models"),
        server.post("/v1/completions", {"prompt": "Once", "max_tokens": 4}),
        server.post("/v1/completions", {"prompt": "Once", "interventions": EDIT}),
    ]
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["type"] == "ServiceUnavailableError"
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["connection"] == "close"


def test_a_stopped_server_lets_requests_end_and_takes_no_more(tmp_path: Path) -> None:
    flags = [*FLAGS, "--shutdown-timeout", "120"]
    with serving(tmp_path / "server.log", flags) as server:
        processes = family(server)
        # The card is asked for before the drain, and long before the stream ends.
        with under_way(server, tokens=1500) as lines:
            os.kill(processes[0].pid, signal.SIGTERM)
            assert_takes_no_more(server)
            tail = rest_of(lines)
        assert "data: [DONE]" in tail, tail[-3:]
        assert tokens_in(tail) == 1500
        (report,) = chunks_of(tail)[-1]["interventions"]
        assert (report["status"], report["generated_rows"]) == ("applied", 1499)
        assert server.process is not None
        assert server.process.wait(SECONDS_TO_END) == 0
        assert ended(processes)


@pytest.mark.parametrize("seconds", [0, 1])
def test_requests_that_outlast_the_timeout_do_not_hold_up_the_end(
    tmp_path: Path, seconds: int
) -> None:
    flags = [*FLAGS, "--shutdown-timeout", str(seconds)]
    with serving(tmp_path / "server.log", flags) as server:
        processes = family(server)
        with under_way(server) as lines:
            os.kill(processes[0].pid, signal.SIGTERM)
            tail = rest_of(lines)
        assert tokens_in(tail) < 1900
        assert server.process is not None
        assert server.process.wait(SECONDS_TO_END) == 0
        assert ended(processes)


def start_and_fail(*arguments: str) -> tuple[int, str]:
    """Exit status and output of a `heed serve` that cannot start."""
    command = [sys.executable, "-m", "heed_server", "serve", *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    # It would win over the size that an argument gives.
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=environment,
        start_new_session=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_port_that_is_taken_ends_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, output = start_and_fail("--host", "127.0.0.1", "--port", str(port))
    assert status != 0
    assert "Address already in use" in output


def test_a_model_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    status, output = start_and_fail(str(tmp_path / "no-model"))
    assert status != 0
    assert "no-model" in output


def test_a_policy_that_cannot_be_used_ends_the_start_with_its_path(tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"methods": {"zerotuning": {"gama": {"maximum": 2}}}}')
    status, output = start_and_fail("--intervention-policy", str(policy))
    assert status == 2
    assert "methods.zerotuning.gama" in output and str(policy) in output


def test_a_cache_that_holds_no_whole_request_ends_the_start() -> None:
    status, output = start_and_fail(*FLAGS, "--kv-cache-memory-bytes", "100000")
    assert status != 0
    assert "KV cache" in output


def test_requests_that_do_not_fit_together_wait_and_those_that_never_fit_are_refused(
    cramped_server: LiveServer,
) -> None:
    """16 requests of up to 700 tokens in a cache of 1,024, and one beyond the context."""
    server = cramped_server
    prompts = [server.prompt(500, start=number) for number in range(16)]
    answers = together(
        [lambda prompt=prompt: server.fresh(prompt, EDIT, max_tokens=200) for prompt in prompts]
    )
    assert all(len(answer.tokens) == 200 for answer in answers)
    refused = server.raw_completion(server.prompt(800), interventions=EDIT)
    assert refused.status_code == 400, refused.text

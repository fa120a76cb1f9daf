"""Two engines behind two API processes: each keeps its own edit table, reports find their way, and all end together."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from live_server import FLAGS, LiveServer, chunks_of, serving, together, tokens_in
from test_faults import SECONDS_TO_END, ended, family, rest_of, under_way

from heed_server.models import bundled_model

pytestmark = pytest.mark.slow

ENGINES = ("0", "1")


@contextmanager
def serving_twice(folder: Path, *more: str) -> Iterator[LiveServer]:
    """Two engines and two API processes."""
    cores = sorted(os.sched_getaffinity(0))
    binding = {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}"}
    flags = [*FLAGS, "--data-parallel-size", "2", *more]
    with serving(folder / "server.log", flags, environment=binding) as server:
        yield server


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one profile."""
    directory = tmp_path_factory.mktemp("profiles")
    put("sentiment", directory)
    return directory


def put(profile: str, directory: Path) -> None:
    """Copy one of the bundled profiles."""
    model = bundled_model("heed-tiny")
    assert model is not None
    shutil.copytree(model.profiles / profile, directory / profile)


@pytest.fixture(scope="module")
def two_engines(tmp_path_factory: pytest.TempPathFactory, profiles: Path) -> Iterator[LiveServer]:
    with serving_twice(tmp_path_factory.mktemp("dp2"), "--profiles", str(profiles)) as server:
        yield server


def test_every_choice_of_every_request_gets_the_report_of_its_own_engine(
    two_engines: LiveServer,
) -> None:
    """No two requests have prompts of one length, and those with equally many choices no answers of one length."""

    def one(number: int) -> tuple[int, int, list[dict[str, int]]]:
        choices, length, tokens = 1 + number % 3, 100 + 3 * number, 6 + number
        prompt = two_engines.prompt(length, start=number)
        edits = [{"method": "zerotuning", "gamma": 1.1 + number / 10}]
        response = two_engines.raw_completion(
            prompt, n=choices, max_tokens=tokens, temperature=0.9, seed=1, ignore_eos=True,
            interventions=edits,
        )  # fmt: skip
        assert response.status_code == 200, response.text
        body = response.json()
        reported = body["choices"] if choices > 1 else [body]
        assert len(reported) == choices
        return length, tokens, [part["interventions"][0] for part in reported]

    before = [two_engines.metric("vllm:prompt_tokens_total", engine=each) for each in ENGINES]
    answers = together([lambda number=number: one(number) for number in range(16)])
    for length, tokens, reports in answers:
        for report in reports:
            assert report["prompt_rows"] == length
            assert report["generated_rows"] == tokens - 1
    after = [two_engines.metric("vllm:prompt_tokens_total", engine=each) for each in ENGINES]
    assert all(late > early for early, late in zip(before, after, strict=True)), (before, after)


def test_equal_edits_give_equal_answers_on_either_engine(two_engines: LiveServer) -> None:
    prompt = two_engines.prompt(90)
    edits = [{"method": "zerotuning", "gamma": 4}]
    answers = together([lambda: two_engines.fresh(prompt, edits) for _ in range(6)])
    assert len({tuple(answer.tokens) for answer in answers}) == 1
    assert len({tuple(answer.logprobs) for answer in answers}) == 1


def test_the_metrics_of_both_api_processes_are_added_up(two_engines: LiveServer) -> None:
    applied = two_engines.metric("heed_requests_total", method="zerotuning", outcome="applied")
    assert applied == 16 + 6


def test_each_engine_counts_the_blocks_that_it_frees(two_engines: LiveServer) -> None:
    before = two_engines.metric("heed_kv_tokens_evicted_total", method="streaming_llm")
    size = 128  # vLLM's own choice on the CPU

    def one(number: int) -> tuple[int, int]:
        edits = [{"method": "streaming_llm", "window": 64}]
        report = two_engines.fresh(two_engines.prompt(500 + number), edits).report
        assert report is not None
        return report[0]["evicted_tokens"], report[0]["freed_blocks"]

    counts = together([lambda number=number: one(number) for number in range(8)])
    assert set(counts) == {(2 * size, 2)}
    after = two_engines.metric("heed_kv_tokens_evicted_total", method="streaming_llm")
    assert after - before == 8 * 2 * size


def readers_of(log: Path, names: str) -> set[str]:
    """The processes that have read exactly these profiles, by the marks that vLLM puts before their lines."""
    lines = re.findall(r"^(.*)Heed: profiles: (.*)$", log.read_text(), re.MULTILINE)
    marks = [re.search(r"pid=\d+", before) for before, found in lines if found == names]
    return {mark[0] for mark in marks if mark is not None}


def test_a_hangup_reaches_both_api_processes(two_engines: LiveServer, profiles: Path) -> None:
    assert two_engines.pid is not None and two_engines.log is not None
    assert len(readers_of(two_engines.log, "sentiment")) == 2
    put("emphasis", profiles)
    os.kill(two_engines.pid, signal.SIGHUP)
    deadline = time.monotonic() + SECONDS_TO_END
    while len(readers_of(two_engines.log, "emphasis, sentiment")) < 2:
        assert time.monotonic() < deadline, "an API process was not told"
        time.sleep(0.1)
    edits = [{"method": "emphasis", "profile": "emphasis", "spans": [{"start": 1, "end": 4}]}]
    prompt = two_engines.prompt(40)
    answers = together([lambda: two_engines.complete(prompt, edits) for _ in range(8)])
    assert all(answer.report and answer.report[0]["status"] == "applied" for answer in answers)


def taken(url: str, asks: int = 8) -> Sequence[int]:
    """Statuses of so many new connections, which meet either API process."""
    return [httpx.get(f"{url}/health", timeout=30).status_code for _ in range(asks)]


def test_both_api_processes_drain(tmp_path: Path) -> None:
    """vLLM ends them first, and their clients would cut off what is under way."""
    with serving_twice(tmp_path, "--shutdown-timeout", "300") as server:
        processes = family(server)
        with ExitStack() as stack:
            streams = [stack.enter_context(under_way(server, tokens=1200)) for _ in range(4)]
            os.kill(processes[0].pid, signal.SIGTERM)
            deadline = time.monotonic() + SECONDS_TO_END
            while set(taken(server.url)) != {503}:
                assert time.monotonic() < deadline, "one of them does not drain"
            tails = [rest_of(lines) for lines in streams]
        for tail in tails:
            assert "data: [DONE]" in tail, tail[-3:]
            assert tokens_in(tail) == 1200
            (report,) = chunks_of(tail)[-1]["interventions"]
            assert (report["status"], report["generated_rows"]) == ("applied", 1199)
        assert server.process is not None
        assert server.process.wait(SECONDS_TO_END) == 0
        assert ended(processes)


def test_everything_ends_with_the_process_that_was_started(tmp_path: Path) -> None:
    """Engines, API processes, and the coordinator, all of which stock vLLM leaves behind."""
    with serving_twice(tmp_path) as server:
        processes = family(server)
        with under_way(server) as lines:
            processes[0].kill()
            rest_of(lines)
        assert server.process is not None
        assert server.process.wait(SECONDS_TO_END) == -signal.SIGKILL
        assert ended(processes), "something of the server is left"

"""A server in a process of its own, and the few calls that the live tests make of it."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil
from transformers import AutoTokenizer

Body = dict[str, Any]
ROOT = Path(__file__).parents[2]

# What the server under test and the stock engine have in common, so that bits can be compared:
# the same kernels see the same rows. Splitting the keys of a row by the size of the batch is
# switched off, because with it stock vLLM itself moves between a mixed batch and alone.
GEOMETRY = {"dtype": "float32", "max_num_batched_tokens": 2048, "enforce_eager": True}
ENVIRONMENT = {"VLLM_CPU_ATTN_SPLIT_KV": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
FLAGS = [
    *("--dtype", str(GEOMETRY["dtype"])),
    *("--max-num-batched-tokens", str(GEOMETRY["max_num_batched_tokens"])),
    "--enforce-eager",
    "--enable-prompt-tokens-details",
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
]
START_SECONDS = 480
# From a signal to the end of the server and of all that it started. vLLM gives its engine five.
STOP_SECONDS = 30

TEXT = (
    "In the beginning the house stood alone on the hill. The review said that the film was good, "
    "but the critic who wrote it had not seen the end. A key was kept under the third stone, and "
    "the number on the door was 47. Every row of the garden was counted in the morning and again "
    "at night; what was lost was found, and what was found was written in the book. The first "
    "word of the letter was never read aloud. Some said that the answer was in the middle, others "
    "looked at the last line only, and a few asked the cat. "
)


@dataclass(frozen=True)
class Completion:
    """One choice. Log-probabilities are the server's floats, digit for digit."""

    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float | None]
    text: str
    report: list[Body] | None
    cached_tokens: int | None


@dataclass
class LiveServer:
    """A running server. `flags` is empty when somebody else started it."""

    url: str
    flags: list[str] = field(default_factory=list)
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    @cached_property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=180, limits=httpx.Limits(max_connections=64))

    @cached_property
    def card(self) -> Body:
        card: Body = self.client.get("/v1/models").json()["data"][0]
        return card

    @property
    def model(self) -> str:
        return str(self.card["id"])

    @property
    def model_dir(self) -> str:
        return str(self.card["root"])

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.model_dir)

    @cached_property
    def block_size(self) -> int:
        """Tokens in a block of the KV cache."""
        labels = re.search(r"^vllm:cache_config_info\{.*", self.client.get("/metrics").text, re.M)
        found = re.search(r'\bblock_size="(\d+)"', labels[0]) if labels else None
        assert found is not None
        return int(found[1])

    @cached_property
    def shape(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.model_dir)

    def prompt(self, length: int, start: int = 0) -> list[int]:
        """Token ids of a text, cut to `length`; another `start` gives another text."""
        text = f"{start}. " + TEXT[start:] + TEXT * (length // 60 + 1)
        ids: list[int] = self.tokenizer(text).input_ids[:length]
        assert len(ids) == length
        return ids

    def post(self, path: str, body: Body) -> httpx.Response:
        return self.client.post(path, json=body)

    def chat(self, content: str, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        defaults: Body = {"model": self.model, "messages": messages, "max_tokens": 4}
        return self.post("/v1/chat/completions", {**defaults, "temperature": 0, **fields})

    def raw_completion(self, prompt: object, **fields: Any) -> httpx.Response:
        defaults: Body = {"model": self.model, "prompt": prompt, "max_tokens": 4, "temperature": 0}
        return self.post("/v1/completions", {**defaults, **fields})

    def complete(
        self,
        prompt: Sequence[int],
        interventions: Sequence[Body] | None = None,
        max_tokens: int = 12,
        prompt_logprobs: bool = False,
        **fields: Any,
    ) -> Completion:
        """Greedy, past every end token. `prompt_logprobs` makes vLLM compute the whole prompt."""
        body: Body = {
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "logprobs": 1,
            "ignore_eos": True,
            "return_token_ids": True,
            **fields,
        }
        if interventions is not None:
            body["interventions"] = list(interventions)
        if prompt_logprobs:
            body["prompt_logprobs"] = 0
        response = self.raw_completion(**body)
        assert response.status_code == 200, response.text
        answer = response.json()
        choice = answer["choices"][0]
        details = answer["usage"]["prompt_tokens_details"] or {}
        return Completion(
            tokens=choice["token_ids"],
            logprobs=choice["logprobs"]["token_logprobs"],
            prompt_logprobs=[
                row[str(token)]["logprob"] if row else None
                for token, row in zip(prompt, choice["prompt_logprobs"] or [], strict=False)
            ],
            text=choice["text"],
            report=answer.get("interventions"),
            cached_tokens=details.get("cached_tokens"),
        )

    def fresh(
        self, prompt: Sequence[int], interventions: Sequence[Body] | None = None, **fields: Any
    ) -> Completion:
        """The same, with a salt that nobody else has: nothing comes out of the prefix cache."""
        return self.complete(prompt, interventions, cache_salt=secrets.token_hex(8), **fields)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            found, _, value = line.rpartition(" ")
            if found.split("{")[0] == name and all(
                f'{k}="{v}"' in found for k, v in labels.items()
            ):
                total += float(value)
        return total


def together(calls: Sequence[Any]) -> list[Any]:
    """Make all calls at once, each in a thread of its own; results in the order of `calls`."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def chunks_of(lines: Sequence[str]) -> list[Body]:
    """What the lines of a stream hold."""
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def tokens_in(lines: Sequence[str]) -> int:
    """Tokens of a stream that was asked for with `return_token_ids`.

    They are not as many as its chunks: where a reader lags, vLLM puts several tokens into one.
    """
    choices = [choice for chunk in chunks_of(lines) for choice in chunk.get("choices", [])]
    return sum(len(choice["token_ids"] or []) for choice in choices)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    log: Path,
    flags: Sequence[str],
    model: str | None = None,
    starter: Sequence[str] = ("heed_server", "serve"),
    environment: Mapping[str, str] = MappingProxyType({}),
    port: int | None = None,
) -> Iterator[LiveServer]:
    """`heed serve` until the block ends, on a free port where none is given.

    starter: another module to run.
    """
    port = port or free_port()
    command = [sys.executable, "-m", *starter, *([model] if model else [])]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    with started(command, log, port, {**os.environ, **ENVIRONMENT, **environment}) as server:
        server.flags = list(flags)
        yield server


@contextmanager
def started(
    command: Sequence[str],
    log: Path,
    port: int,
    environment: Mapping[str, str],
    start_seconds: float = START_SECONDS,
) -> Iterator[LiveServer]:
    """What `command` serves on a port until the block ends; it then has to end cleanly."""
    with log.open("wb") as sink:
        # A session of its own, so that its workers can be ended with it and nobody else is.
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            cwd=ROOT,
        )
    try:
        server = LiveServer(f"http://127.0.0.1:{port}", log=log, process=process)
        wait_until_healthy(server, process, start_seconds)
        yield server
        server.client.close()
        if process.poll() is None:  # a test may have ended it itself
            assert_ends_cleanly(process)
    finally:
        kill(process)


def wait_until_healthy(
    server: LiveServer, process: subprocess.Popen[bytes], seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    tail = "\n".join(
        server.log.read_text(errors="replace").splitlines()[-40:] if server.log else []
    )
    raise RuntimeError(f"the server did not become healthy (exit {process.poll()}):\n{tail}")


def assert_ends_cleanly(process: subprocess.Popen[bytes], status: int = 0) -> None:
    """SIGTERM ends it with this exit status in time, and nothing that it started is left."""
    process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    assert process.wait(STOP_SECONDS) == status
    while left := session_of(process.pid):
        assert time.monotonic() < deadline, f"still there after the server's end: {left}"
        time.sleep(0.1)


def session_of(leader: int) -> list[str]:
    """Command lines of the processes that live in the session which a process has begun."""
    found = []
    for each in psutil.process_iter(["cmdline", "status"]):
        with suppress(ProcessLookupError):
            if os.getsid(each.pid) == leader and each.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(" ".join(each.info["cmdline"] or ["?"]))
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the group is the server's own: see above
    process.wait()

"""What is checked: plain requests keep stock vLLM's bits, alone and beside edited ones; edits mean what they say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from heed_server.measuring.load import random_prompts
from heed_server.measuring.rounds import Interventions
from heed_server.verify.answers import TOKENS, Answer, Question, ask, ask_together

Verdict = Literal["pass", "fail", "unknown"]
GAMMA = 2.0
EDIT: Interventions = [{"method": "zerotuning", "gamma": GAMMA}]
NEUTRAL: Interventions = [{"method": "zerotuning", "gamma": 1}]
LENGTHS = (17, 64, 200, 333)
"""Prompt tokens; those that do not fit into the model's context are left out."""
ROUNDS = 3
"""How often plain requests are sent beside others."""

TOLERANCE = 1e-3
"""In log-probability, for a model served in float32. Sums of long rows differ by their order; a mistake in
an edit moves answers by tenths."""

Done = Callable[[], None]
"""Called when a prompt, or a round, is done with."""
Logprobs = Callable[[Sequence[int], Sequence[int]], list[float]]
"""Of the reference: log-probabilities of an answer behind a prompt, under `EDIT`."""


@dataclass(frozen=True)
class Check:
    """verdict: unknown where it could not be decided, and `said` says why."""

    name: str
    verdict: Verdict
    said: str


@dataclass(frozen=True)
class Servers:
    """Addresses of stock vLLM and of Heed, on one model with the same flags."""

    stock: str
    heed: str


def prompts_below(vocabulary: int, longest: int) -> list[list[int]]:
    """Random prompts of `LENGTHS` that leave room for an answer in `longest` tokens."""
    room = longest - TOKENS
    lengths = [length for length in LENGTHS if length < room] or [max(room // 2, 1)]
    return [
        prompt
        for length in lengths
        for prompt in random_prompts(1, length, vocabulary, seed=length)
    ]


def identity(
    servers: Servers, prompts: Sequence[Sequence[int]], done: Done, *, neutral: bool
) -> Check:
    """Plain requests against stock vLLM, and those with neutral parameters where any are taken."""
    different: list[str] = []
    kinds: dict[str, Interventions | None] = {"plain": None, "empty": []}
    if neutral:
        kinds["neutral"] = NEUTRAL
    for prompt in prompts:
        stock = ask(servers.stock, Question(prompt)).bits
        for name, interventions in kinds.items():
            if ask(servers.heed, Question(prompt, interventions)).bits != stock:
                different.append(f"{name}, {len(prompt)} tokens")
        done()
    if different:
        return Check("identity", "fail", f"not stock vLLM's bits: {'; '.join(different)}")
    return Check(
        "identity",
        "pass",
        f"{len(kinds) * len(prompts)} answers ({', '.join(kinds)}) have stock vLLM's bits",
    )


def isolation(servers: Servers, prompts: Sequence[Sequence[int]], done: Done) -> Check:
    """Plain requests beside edited ones against the same alone; unknown where stock vLLM itself answers
    differently beside plain ones."""
    if _moved(servers.stock, prompts, None, done):
        return Check(
            "isolation",
            "unknown",
            "stock vLLM itself does not keep its bits beside other requests on this machine",
        )
    moved = _moved(servers.heed, prompts, EDIT, done)
    if moved:
        return Check("isolation", "fail", f"{moved} plain answers changed beside edited requests")
    return Check(
        "isolation",
        "pass",
        f"{ROUNDS * len(prompts)} plain answers beside as many edited ones have the bits of those alone",
    )


def reference(
    servers: Servers, prompts: Sequence[Sequence[int]], done: Done, logprobs: Logprobs, dtype: str
) -> Check:
    """Edited answers against an implementation of the edit that shares nothing with Heed."""
    worst = 0.0
    for prompt in prompts:
        answer = ask(servers.heed, Question(prompt, EDIT))
        if [report["status"] for report in answer.report] != ["applied"]:
            return Check("reference", "fail", f"the edit was not applied: {answer.report}")
        worst = max(worst, _distance(answer, logprobs(prompt, answer.tokens)))
        done()
    said = f"log-probabilities within {worst:.1e} of transformers in float32"
    if dtype != "float32":
        return Check("reference", "unknown", f"{said}; served in {dtype}, so not judged")
    return Check("reference", "pass" if worst <= TOLERANCE else "fail", said)


def _moved(
    url: str, prompts: Sequence[Sequence[int]], beside: Interventions | None, done: Done
) -> int:
    """How many plain answers are not those alone when as many others run with them."""
    plain = [Question(prompt) for prompt in prompts]
    alone = [ask(url, question).bits for question in plain]
    others = [Question(list(reversed(prompt)), beside) for prompt in prompts]
    moved = 0
    for _ in range(ROUNDS):
        answers = ask_together(url, [*plain, *others])[: len(plain)]
        moved += sum(a.bits != b for a, b in zip(answers, alone, strict=True))
        done()
    return moved


def _distance(answer: Answer, expected: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(answer.logprobs, expected, strict=True))

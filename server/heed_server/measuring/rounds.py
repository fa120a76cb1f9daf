"""Arms of a serving benchmark: the same bursts sent to several servers in turn, and ratios of their times.

Each round sends one burst per arm, in an order drawn anew (an arm that always followed the same other
one would inherit its caches and pages), and ratios are taken within a round. Where its memory happens
to lie makes a process some per cent faster or slower for its whole life, so that servers are to be
started afresh several times: the 95 % intervals (bootstrap) draw starts first and rounds within them.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from heed_server.measuring import load
from heed_server.measuring.servers import Server

PAUSE_SECONDS = 1.5
"""vLLM's workers spin for a second after their last step: on few cores the one would slow the other."""
PHASES = ("prefill", "decode", "total", "first")
API = "processor time of the API process"
_RESAMPLES = 4000

Interventions = list[dict[str, Any]]
Measured = dict[str, dict[str, list[float]]]
"""Seconds of one start: by arm and phase, one number per round."""


@dataclass(frozen=True)
class Arm:
    """One kind of traffic. server: by name; interventions: of each request of a burst, None for plain."""

    server: str
    interventions: Sequence[Interventions | None]


@dataclass(frozen=True)
class Traffic:
    """Bursts: random prompts of `prompt` ids below `vocabulary`, and `output` tokens for each."""

    prompt: int
    output: int
    vocabulary: int


def measure_start(
    stood: Mapping[str, Server],
    arms: Mapping[str, Arm],
    traffic: Traffic,
    start: int,
    rounds: int,
    told: Callable[[], None] = lambda: None,
) -> Measured:
    """All rounds of one start of the servers, and one before them that warms every arm up.

    stood: running servers by name. start: its number, which seeds prompts and orders. told: called
    after each round.
    """
    order = random.Random(start)
    names = list(arms)
    measured = {name: {phase: list[float]() for phase in (*PHASES, API)} for name in names}
    for number in range(-1, rounds):
        requests = max(len(arm.interventions) for arm in arms.values())
        seed = 1000 * start + number + 7
        prompts = load.random_prompts(requests, traffic.prompt, traffic.vocabulary, seed)
        for name in order.sample(names, len(names)):
            server, edits = stood[arms[name].server], arms[name].interventions
            time.sleep(PAUSE_SECONDS)
            before = server.api_seconds()
            seen = load.run(server.url, load.Burst(prompts[: len(edits)], traffic.output, edits))
            api = server.api_seconds() - before
            if number < 0:
                continue
            values = (seen.prefill, seen.decode, seen.total, float(np.median(seen.first)), api)
            for phase, value in zip((*PHASES, API), values, strict=True):
                measured[name][phase].append(value)
        told()
    return measured


def start_in_turn(servers: Mapping[str, Server], start: int, running: ExitStack) -> None:
    """Start them within `running`; the first one is not the same one at every start."""
    names = list(servers)
    turn = start % len(names)
    for name in names[turn:] + names[:turn]:
        running.enter_context(servers[name])


def ratio(
    measured: Sequence[Measured], above: str, below: Sequence[str], phase: str
) -> dict[str, float]:
    """Speed of the arm `above` relative to the geometric mean of those `below` (above 1: faster), from
    rounds paired with each other."""
    logarithms = [
        np.mean([np.log(one[arm][phase]) for arm in below], axis=0) - np.log(one[above][phase])
        for one in measured
    ]
    ratios = np.exp(logarithms)  # [starts, rounds]
    starts, rounds = ratios.shape
    generator = np.random.default_rng(0)
    drawn = ratios[generator.integers(0, starts, (_RESAMPLES, starts))]
    within = generator.integers(0, rounds, drawn.shape)
    medians = np.median(np.take_along_axis(drawn, within, axis=2), axis=(1, 2))
    low, high = np.quantile(medians, (0.025, 0.975))
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def summary(measured: Sequence[Measured], ratios: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """`ratios` by name and phase, out of (name, arm above, arms below), and every arm's `medians`.

    Ratios with an arm that was not measured are left out.
    """
    return {
        "ratios": {
            name: {phase: ratio(measured, above, below, phase) for phase in PHASES}
            for name, above, *below in ratios
            if {above, *below} <= measured[0].keys()
        },
        "medians": {
            arm: {
                phase: float(np.median([value for one in measured for value in one[arm][phase]]))
                for phase in PHASES
            }
            # Its clock ticks are too coarse for a median.
            | {API: float(np.mean([value for one in measured for value in one[arm][API]]))}
            for arm in measured[0]
        },
    }


def table(heading: str, result: Mapping[str, Any]) -> str:
    """A `summary` in Markdown, and the medians of each arm below it."""
    lines = [
        heading,
        "",
        "| speed ratio | prefill | decode | whole burst | time to first token |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, phases in result["ratios"].items():
        cells = [f"{p['median']:.3f} [{p['low']:.3f}, {p['high']:.3f}]" for p in phases.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for arm, phases in result["medians"].items():
        seconds = ", ".join(f"{phase} {value:.3f} s" for phase, value in phases.items())
        lines.append(f"{arm}: {seconds}")
    return "\n".join(lines)

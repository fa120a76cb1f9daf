"""Sampling with a seed, which stock vLLM on the CPU does not survive for a prompt of several chunks."""

from functools import partial

from live_server import LiveServer, together


def test_seeded_prompts_of_several_chunks_are_sampled_as_alone(server: LiveServer) -> None:
    prompts = [server.prompt(900, start) for start in range(8)]
    sample = partial(server.fresh, temperature=1.0, max_tokens=8)
    alone = [sample(prompt, seed=7 + i).tokens for i, prompt in enumerate(prompts)]
    beside = together([partial(sample, p, seed=7 + i) for i, p in enumerate(prompts)])
    assert [one.tokens for one in beside] == alone
    assert len(set(map(tuple, alone))) > 1

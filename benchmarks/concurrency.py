"""How many requests a pool holds that give keys back, beside plain ones: counts, not times.

    python benchmarks/concurrency.py

Equal requests arrive at once in a pool that holds three plain ones; the engine and its requests are
those of `tests/live/test_eviction_memory.py`. Nothing here depends on how busy the machine is.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "live"))
from evicting_engine import ANSWER, KEEP, POOL, PROMPT, REQUESTS, STREAMING, EvictingEngine
from evicting_engine import concurrency as measured
from streaming_engine import BLOCK, CHUNK

from heed_server.models import bundled_model

NAMES = {
    "plain": "plain",
    "streaming": f"`streaming_llm`, {STREAMING['sinks']} + {STREAMING['window']}",
    "snapkv": f"`snapkv`, `keep` {KEEP}",
}
COLUMNS = {
    "decoding": "decode at once",
    "peak": "most blocks after a step",
    "steps": "steps",
    "preemptions": "preemptions",
}


def main() -> None:
    os.environ |= {"VLLM_PLUGINS": "heed", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    model = bundled_model("heed-tiny")
    assert model is not None
    found = measured(EvictingEngine(str(model.directory), pool=200), 0)
    print(
        f"{REQUESTS} requests of {PROMPT} + {ANSWER} tokens, blocks of {BLOCK}, chunks of {CHUNK}, "
        f"{POOL} blocks:\n"
    )
    print("| requests | " + " | ".join(COLUMNS.values()) + " |")
    print("| --- |" + " --- |" * len(COLUMNS))
    for key, name in NAMES.items():
        print(f"| {name} | " + " | ".join(str(found[key][column]) for column in COLUMNS) + " |")


if __name__ == "__main__":
    main()

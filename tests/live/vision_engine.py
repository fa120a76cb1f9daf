"""An engine of a vision-language model, run as a script: chats with pictures by way of the offline class.

Arguments: a file to read, `{"model": directory, "options": engine arguments, "parts": of the user's turn,
texts and data URIs, "edits": [interventions of one chat each], "max_tokens": n, "refused": [interventions
of one chat each]}`, and a file to write: `{"answers": [...], "refused": [[field, status, message], ...]}`.
The chats of `edits` run in one batch.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    from vllm import SamplingParams

    from heed_server.offline import LLM, RefusedError

    job = json.loads(Path(sys.argv[1]).read_text())
    engine = LLM(job["model"], allow_privileged_interventions=True, **job["options"])
    content = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith("data:")
        else {"type": "text", "text": part}
        for part in job["parts"]
    ]
    chat = [{"role": "user", "content": content}]
    params = SamplingParams(
        temperature=0,
        max_tokens=job["max_tokens"],
        logprobs=1,
        prompt_logprobs=0,
        ignore_eos=True,
    )

    def ask(edits: list[Any]) -> list[Any]:
        return engine.chat([chat] * len(edits), params, use_tqdm=False, interventions=edits)

    def refusal(edits: Any) -> list[Any]:
        try:
            ask([edits])
        except RefusedError as error:
            return [error.parameter, error.status, error.message]
        return []

    found = {
        "answers": [told(output) for output in ask(job["edits"])],
        "refused": [refusal(edits) for edits in job["refused"]],
    }
    Path(sys.argv[2]).write_text(json.dumps(found))


def told(output: Any) -> dict[str, Any]:
    """The prompt's token ids, and the fields of `live_server.Completion`."""
    (choice,) = output.outputs
    prompt, tokens = list(output.prompt_token_ids), list(choice.token_ids)
    completion = {
        "tokens": tokens,
        "logprobs": [
            row[token].logprob for token, row in zip(tokens, choice.logprobs, strict=True)
        ],
        "prompt_logprobs": [
            row[token].logprob if row else None
            for token, row in zip(prompt, output.prompt_logprobs, strict=True)
        ],
        "text": choice.text,
        "report": output.interventions,
        "cached_tokens": output.num_cached_tokens,
    }
    return {"prompt": prompt, "completion": completion}


# vLLM starts its engine in a child that imports this file again.
if __name__ == "__main__":
    main()

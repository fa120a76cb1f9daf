"""Stock vLLM without Heed, run as a script: what plain requests have to equal bit for bit.

Arguments: a file to read, `{"model": directory, "geometry": engine arguments, "requests":
[{"prompt": [ids], "max_tokens": n}]}`, and a file to write: for each request, served one at a time,
`{"tokens", "logprobs", "prompt_logprobs"}`, floats as `float.hex()`.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams

    job = json.loads(Path(sys.argv[1]).read_text())
    engine = LLM(model=job["model"], disable_log_stats=True, **job["geometry"])
    answers = []
    for request in job["requests"]:
        parameters = SamplingParams(
            temperature=0,
            max_tokens=request["max_tokens"],
            logprobs=1,
            prompt_logprobs=0,
            ignore_eos=True,
        )
        prompt = {"prompt_token_ids": request["prompt"]}
        output = engine.generate([prompt], parameters, use_tqdm=False)[0]
        choice = output.outputs[0]
        tokens = list(choice.token_ids)
        answers.append(
            {
                "tokens": tokens,
                "logprobs": [
                    row[token].logprob.hex()
                    for token, row in zip(tokens, choice.logprobs, strict=True)
                ],
                "prompt_logprobs": [
                    row[token].logprob.hex() if row else None
                    for token, row in zip(request["prompt"], output.prompt_logprobs, strict=True)
                ],
            }
        )
    Path(sys.argv[2]).write_text(json.dumps(answers))


# vLLM starts its engine in a child that imports this file again.
if __name__ == "__main__":
    main()

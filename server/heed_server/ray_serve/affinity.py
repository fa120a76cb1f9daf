"""What two requests must have in common to share blocks of the prefix cache, as a text that is compared from its start.

Ray's prefix-aware router sends requests whose texts begin alike to one replica. A prompt alone is the wrong text:
with another `cache_salt`, or other edits, an equal prompt has blocks of its own.
"""

import hashlib
import json
from typing import Any

PARTING_FIELDS = ("model", "cache_salt", "interventions")
PROMPT_FIELDS = ("messages", "prompt", "input")
PARTING_CHARACTERS = 8
"""Few beside a prompt: requests that share these alone should not count as alike."""
MOST_CHARACTERS = 16_384
"""What a router has to keep of one request at most; prompts that are alike for so long may meet by chance."""


def affinity(body: bytes) -> str:
    """What parts the cache, digested, and then the prompt as it is written; never empty.

    body: of a request, whatever it holds; what cannot be read gives the text of an empty request.
    """
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        read = None
    fields: dict[str, Any] = read if isinstance(read, dict) else {}
    parting = json.dumps([fields.get(name) for name in PARTING_FIELDS], sort_keys=True)
    prompts = [fields[name] for name in PROMPT_FIELDS if name in fields]
    digest = hashlib.sha256(parting.encode()).hexdigest()
    text = digest[:PARTING_CHARACTERS] + "".join(_text(prompt) for prompt in prompts)
    return text[:MOST_CHARACTERS]


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt)

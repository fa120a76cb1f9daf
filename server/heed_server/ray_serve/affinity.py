"""What two requests must have in common to share blocks of the prefix cache, as a text that is compared from its start.

Ray's prefix-aware router sends requests whose texts begin alike to one replica. A prompt alone is the wrong text:
with another `cache_salt`, or other edits, an equal prompt has blocks of its own.
"""

import hashlib
import json
from itertools import islice
from typing import Any

PARTING_FIELDS = ("model", "cache_salt", "interventions")
PROMPT_FIELDS = ("system", "instructions", "messages", "prompt", "input")
"""In the order in which templates write them."""
PARTING_CHARACTERS = 8
"""Few beside a prompt: requests that share these alone should not count as alike."""
MOST_CHARACTERS = 16_384
"""What a router has to keep of one request at most; prompts that are alike for so long may meet by chance."""
MOST_BYTES_READ = 4 << 20
"""Largest body that is parsed here, which holds up every other request: some 50 ms where it is all numbers."""


def affinity(body: bytes) -> str:
    """What parts the cache, digested, and then the prompt as it is written; never empty.

    body: of a request, whatever it holds; what cannot be read gives the text of an empty request, and what is too
        long to be read here, as bodies with large pictures are, its own beginning.
    """
    if len(body) > MOST_BYTES_READ:
        return body[:MOST_CHARACTERS].decode("latin-1")
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        read = None
    fields: dict[str, Any] = read if isinstance(read, dict) else {}
    parting = json.dumps([fields.get(name) for name in PARTING_FIELDS], sort_keys=True)
    digest = hashlib.sha256(parting.encode()).hexdigest()[:PARTING_CHARACTERS]
    prompts = [fields[name] for name in PROMPT_FIELDS if name in fields]
    return digest + _beginning(prompts, MOST_CHARACTERS - len(digest))


def _beginning(value: Any, room: int) -> str:
    """The first characters of all that a JSON value says, in its order; no more of it is looked at."""
    pieces: list[str] = []
    waiting = [value]
    while waiting and room > 0:
        each = waiting.pop()
        if isinstance(each, dict):
            each = [part for pair in islice(each.items(), room) for part in pair]
        if isinstance(each, list):
            waiting += reversed(each[:room])
            continue
        # A number ends somewhere: 1, 23 is no 12, 3.
        piece = each[:room] if isinstance(each, str) else f"{each} "
        pieces.append(piece[:room])
        room -= len(piece)
    return "".join(pieces)

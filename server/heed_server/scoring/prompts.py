"""Items in tokens: the prompt's, and those that each choice adds to it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heed_server.scoring.client import Client
from heed_server.scoring.data import Item
from heed_server.scoring.errors import ScoringError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """An item in tokens; an image has as many as the model sees of it.

    choices: what each adds to the prompt; empty where the item has none, or they are not needed.
    right: which of them is right; None where it is not known.
    """

    item: Item
    prompt: Tokens
    choices: tuple[Tokens, ...]
    right: int | None

    @property
    def one_token_choices(self) -> bool:
        """Whether the next token decides between the choices."""
        return all(len(choice) == 1 for choice in self.choices)


async def prepare(client: Client, items: Sequence[Item], *, choices: bool = True) -> list[Prepared]:
    """Tokenise items as the server does.

    choices: whether theirs are needed; a text is looked at without.

    Raises:
        ScoringError: naming the line, when a choice is not a run of tokens after the prompt's.
    """
    return list(await asyncio.gather(*(_prepare(client, item, choices) for item in items)))


async def _prepare(client: Client, item: Item, with_choices: bool) -> Prepared:
    wanted = item.choices if with_choices else ()
    prompt = await client.tokens(_body(item, None))
    together = [await client.tokens(_body(item, choice)) for choice in wanted]
    for choice, tokens in zip(wanted, together, strict=True):
        if tokens[: len(prompt)] != prompt or len(tokens) == len(prompt):
            raise ScoringError(
                f"{item.where}: the choice {choice!r} cannot be tokenised apart from the prompt: "
                "together they are not the prompt's tokens and then some"
            )
    choices = tuple(tokens[len(prompt) :] for tokens in together)
    if len(set(choices)) < len(choices):
        raise ScoringError(f"{item.where}: two choices are the same tokens")
    right = wanted.index(item.answer) if wanted and item.answer else None
    return Prepared(item, prompt, choices, right)


def _body(item: Item, choice: str | None) -> dict[str, Any]:
    if item.messages is None:
        return {"prompt": (item.prompt or "") + (choice or "")}
    if choice is None:
        return {"messages": item.chat(), "add_generation_prompt": True}
    return {
        "messages": item.chat(choice),
        "add_generation_prompt": False,
        "continue_final_message": True,
    }

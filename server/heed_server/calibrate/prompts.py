"""Items in tokens: the prompt's, and those that each choice adds to it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heed_server.calibrate.client import Client
from heed_server.calibrate.data import Item
from heed_server.calibrate.errors import CalibrationError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """An item in tokens.

    choices: what each adds to the prompt; empty where the item has none.
    right: which of them is right; None where it is not known.
    """

    item: Item
    prompt: Tokens
    choices: tuple[Tokens, ...]
    right: int | None


async def prepare(client: Client, items: Sequence[Item]) -> list[Prepared]:
    """Tokenise items as the server does.

    Raises:
        CalibrationError: naming the line, when a choice is not a run of tokens after the prompt's.
    """
    return list(await asyncio.gather(*(_prepare(client, item) for item in items)))


async def _prepare(client: Client, item: Item) -> Prepared:
    prompt = await client.tokens(_body(item, None))
    together = [await client.tokens(_body(item, choice)) for choice in item.choices]
    for choice, tokens in zip(item.choices, together, strict=True):
        if tokens[: len(prompt)] != prompt or len(tokens) == len(prompt):
            raise CalibrationError(
                f"{item.where}: the choice {choice!r} cannot be tokenised apart from the prompt: "
                "together they are not the prompt's tokens and then some"
            )
    choices = tuple(tokens[len(prompt) :] for tokens in together)
    if len(set(choices)) < len(choices):
        raise CalibrationError(f"{item.where}: two choices are the same tokens")
    right = item.choices.index(item.answer) if item.choices and item.answer else None
    return Prepared(item, prompt, choices, right)


def _body(item: Item, choice: str | None) -> dict[str, Any]:
    if item.messages is None:
        return {"prompt": (item.prompt or "") + (choice or "")}
    if choice is None:
        return {"messages": list(item.messages), "add_generation_prompt": True}
    said = [*item.messages, {"role": "assistant", "content": choice}]
    return {"messages": said, "add_generation_prompt": False, "continue_final_message": True}

"""What has to be sent to a server so that an item can be scored under a setting."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from heed_server.scoring.prompts import Prepared, Tokens

Kind = Literal["choices", "text", "entropy"]
"""By log-probability of the choices, by the greedy text, or by the next token's entropy."""

Intervention = Mapping[str, Any]
Setting = Sequence[Intervention]
"""The interventions of a request. `emphasis` without spans gets the item's own."""
PLAIN: Setting = ()


@dataclass(frozen=True)
class Call:
    """One prompt to be sent; calls with equal `interventions`, `kind` and `messages` can share a request.

    interventions: JSON. kind: the next token's log-probabilities, the prompt's own, or a text.
    messages: JSON of the chat where there are images in it, which tokens do not carry; else None.
    """

    prompt: Tokens
    interventions: str
    kind: Literal["next", "prompt", "text"]
    messages: str | None = None


def calls_for(item: Prepared, kind: Kind, setting: Setting) -> list[Call]:
    """The calls whose answers `scores.score` needs, in that order."""
    if kind == "text":
        return [_call(item, setting, "text")]
    if kind == "entropy" or item.one_token_choices:
        return [_call(item, setting, "next")]
    return calls_for_choices(item, setting)


def calls_for_choices(item: Prepared, setting: Setting) -> list[Call]:
    """One call for each choice, as the end of a prompt."""
    return [
        Call(
            item.prompt + tokens,
            _interventions(item, setting, len(tokens)),
            "prompt",
            _messages(item, choice),
        )
        for choice, tokens in zip(item.item.choices, item.choices, strict=True)
    ]


def _call(item: Prepared, setting: Setting, kind: Literal["next", "text"]) -> Call:
    return Call(item.prompt, _interventions(item, setting), kind, _messages(item))


def _messages(item: Prepared, choice: str | None = None) -> str | None:
    return json.dumps(item.item.chat(choice)) if item.item.has_images else None


def _interventions(item: Prepared, setting: Setting, added: int = 0) -> str:
    """The field of a request.

    added: tokens of a choice after the prompt. They stand for generated ones, which keep their
        weight under `emphasis`, so they are a span as well.
    """
    own = [{"text": item.item.emphasise}]
    end = len(item.prompt)
    behind = [{"start": end, "end": end + added}] if added else []
    return json.dumps(
        [
            {**each, "spans": [*each.get("spans", own), *behind]}
            if each["method"] == "emphasis"
            else dict(each)
            for each in setting
        ]
    )

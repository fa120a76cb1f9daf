"""Where the characters of a prompt lie among its tokens.

The text is what the tokenizer's own `decode` gives, special tokens included. A character may be
split over several tokens (bytes of an emoji); it then belongs to each of them.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

from heed_interventions.text.byte_level import align_byte_level
from heed_interventions.text.piece_decoders import align_pieces

OPAQUE = "\ud800"
"""Stands for each character of a visual placeholder: no request's text holds a lone surrogate."""

_LONGEST_CHARACTER = 16


class AlignmentError(Exception):
    """The tokenizer's text could not be aligned with its tokens."""


class TokenText:
    """A text and, for every token, the characters [start, end) that it shares in.

    starts, ends: one entry per token, neither ever decreasing; a token without characters has
    start = end.
    """

    def __init__(self, text: str, starts: Sequence[int], ends: Sequence[int]) -> None:
        self.text = text
        self.starts = starts
        self.ends = ends
        self._known: dict[str, tuple[list[tuple[int, int]], Iterator[tuple[int, int]]]] = {}
        """By text, the occurrences that were asked for, and the search that goes on where they end."""

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Tokens [start, end) of each occurrence of `text`, in order and not overlapping.

        No further than the caller goes on, and none is looked for twice.
        """
        found, following = self._known.setdefault(text, ([], self._search(text)))
        for index in count():
            if index == len(found):
                found += islice(following, 1)
            if index == len(found):
                return
            yield found[index]

    def _search(self, text: str) -> Iterator[tuple[int, int]]:
        at = self.text.find(text)
        while at >= 0:
            yield self.tokens(at, at + len(text))
            at = self.text.find(text, at + len(text))

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """Tokens [first, past) that share a character with the characters [start, end)."""
        return bisect_right(self.ends, start), bisect_left(self.starts, end)


def align(tokenizer: Any, ids: Sequence[int], opaque: Sequence[tuple[int, int]] = ()) -> TokenText:
    """The text of `ids` with its alignment, in time linear in their number.

    tokenizer: a Hugging Face tokenizer, or anything with its `decode`; a fast one
        (`backend_tokenizer`) is aligned exactly, others by decoding step by step.
    opaque: token ranges [start, end) of visual placeholders: nothing is ever found in them.

    Raises `AlignmentError` when the pieces do not add up to what `decode` says.
    """
    ids = list(ids)
    text = _decode(tokenizer, ids)
    spans = _exact_spans(tokenizer, ids, text)
    if spans is None:
        spans = _stepwise_spans(tokenizer, ids, text)
    starts, ends = spans
    return TokenText(_hide(text, starts, ends, opaque), starts, ends)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    try:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    except TypeError:
        # Not every tokenizer knows the second argument; those do not clean up.
        text = tokenizer.decode(ids, skip_special_tokens=False)
    return str(text)


def _exact_spans(tokenizer: Any, ids: list[int], text: str) -> tuple[list[int], list[int]] | None:
    """Characters per token from what the tokenizer's decoder does; None where that is not known."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(backend, "decoder", None) is None:
        return None
    steps = _decoder_steps(json.loads(backend.decoder.__getstate__()))
    known = {token_id: backend.id_to_token(token_id) for token_id in set(ids)}
    tokens = [known[token_id] or "" for token_id in ids]
    byte_level = [step["type"] for step in steps] == ["ByteLevel"]
    aligned = align_byte_level(tokens) if byte_level else align_pieces(tokens, steps)
    if aligned is None or aligned[0] != text:
        return None
    return aligned[1], aligned[2]


def _decoder_steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _decoder_steps(inner)]


def _stepwise_spans(tokenizer: Any, ids: list[int], text: str) -> tuple[list[int], list[int]]:
    """Characters per token from decoding token by token behind a short context.

    Tokens whose text is not settled yet (it ends in a replacement character) wait for the next and
    then share its characters.
    """
    starts: list[int] = []
    ends: list[int] = []
    pieces: list[str] = []
    length = context = settled = 0
    for position in range(len(ids)):
        before = _decode(tokenizer, ids[context:settled])
        after = _decode(tokenizer, ids[context : position + 1])
        waiting = position + 1 - settled
        last = position + 1 == len(ids)
        if after.endswith("\ufffd") and waiting < _LONGEST_CHARACTER and not last:
            continue
        piece = after[len(before) :]
        starts += [length] * waiting
        length += len(piece)
        ends += [length] * waiting
        pieces.append(piece)
        context, settled = settled, position + 1
    if "".join(pieces) != text:
        raise AlignmentError("the tokens' texts do not add up to the prompt's text")
    return starts, ends


def _hide(
    text: str, starts: Sequence[int], ends: Sequence[int], opaque: Sequence[tuple[int, int]]
) -> str:
    """`text` with the characters of the tokens of `opaque` replaced, its length unchanged."""
    parts = []
    at = 0
    for first, past in sorted(opaque):
        if first >= past:
            continue
        start, end = max(at, starts[first]), max(at, ends[past - 1])
        parts += [text[at:start], OPAQUE * (end - start)]
        at = end
    return "".join([*parts, text[at:]])

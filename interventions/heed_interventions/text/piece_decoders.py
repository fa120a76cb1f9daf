"""Alignment of SentencePiece-like tokens (Llama 2, Gemma, T5) with the characters of their text.

The decoder of such a tokenizer is a short list of steps over pieces of text. Each step is followed
here while every piece remembers the tokens that it came from.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass
class _Pieces:
    """texts[i] came from tokens [spans[i][0], spans[i][1]); fused: the decoder sees one string."""

    texts: list[str]
    spans: list[tuple[int, int]]
    fused: bool = False


def align_pieces(
    tokens: list[str], steps: list[dict[str, Any]]
) -> tuple[str, list[int], list[int]] | None:
    """Text, first character and past-the-last character of each token.

    tokens: as the vocabulary writes them. steps: the decoder's steps in their serialised form.
    None for a step, or an order of steps, that is not known here.
    """
    pieces = _Pieces(list(tokens), [(index, index + 1) for index in range(len(tokens))])
    for step in steps:
        follow = _STEPS.get(step["type"])
        if follow is None or not follow(pieces, step):
            return None
    starts = [0] * len(tokens)
    ends = [0] * len(tokens)
    length = 0
    for text, (first, past) in zip(pieces.texts, pieces.spans, strict=True):
        for token in range(first, past):
            starts[token] = length
            ends[token] = length + len(text)
        length += len(text)
    return "".join(pieces.texts), starts, ends


def _replace(pieces: _Pieces, step: dict[str, Any]) -> bool:
    pattern = step["pattern"].get("String")
    if pattern is None or (pieces.fused and len(pattern) != 1):
        return False
    pieces.texts = [text.replace(pattern, step["content"]) for text in pieces.texts]
    return True


def _metaspace(pieces: _Pieces, step: dict[str, Any]) -> bool:
    if pieces.fused:
        return False
    mark = step["replacement"]
    texts = [text.replace(mark, " ") for text in pieces.texts]
    if texts and step.get("prepend_scheme", "always") != "never":
        # The decoder drops every mark of the first token, not only a leading one.
        texts[0] = pieces.texts[0].replace(mark, "")
    pieces.texts = texts
    return True


def _byte_fallback(pieces: _Pieces, step: dict[str, Any]) -> bool:
    if pieces.fused:
        return False
    texts: list[str] = []
    spans: list[tuple[int, int]] = []
    run: list[int] = []

    def close(past: int) -> None:
        first = past - len(run)
        try:
            characters = bytes(run).decode()
        except UnicodeDecodeError:
            # One bad byte spoils the run: a replacement character for each of its bytes.
            texts.extend("\ufffd" * len(run))
            spans.extend((token, token + 1) for token in range(first, past))
        else:
            for character in characters:
                size = len(character.encode())
                texts.append(character)
                spans.append((first, first + size))
                first += size
        run.clear()

    for index, text in enumerate(pieces.texts):
        byte = _BYTE_TOKEN.fullmatch(text)
        if byte:
            run.append(int(byte[1], 16))
            continue
        close(index)
        texts.append(text)
        spans.append((index, index + 1))
    close(len(pieces.texts))
    pieces.texts, pieces.spans = texts, spans
    return True


def _fuse(pieces: _Pieces, step: dict[str, Any]) -> bool:
    pieces.fused = True
    return True


def _strip(pieces: _Pieces, step: dict[str, Any]) -> bool:
    if not pieces.fused:
        return False
    _strip_front(
        pieces.texts, range(len(pieces.texts)), step["content"], step["start"], str.removeprefix
    )
    backwards = range(len(pieces.texts) - 1, -1, -1)
    _strip_front(pieces.texts, backwards, step["content"], step["stop"], str.removesuffix)
    return True


def _strip_front(
    texts: list[str], order: range, content: str, times: int, remove: Callable[[str, str], str]
) -> None:
    for index in order:
        while times and texts[index]:
            shorter = remove(texts[index], content)
            if shorter == texts[index]:
                return
            texts[index] = shorter
            times -= 1
        if not times:
            return


_STEPS: dict[str, Callable[[_Pieces, dict[str, Any]], bool]] = {
    "Replace": _replace,
    "Metaspace": _metaspace,
    "ByteFallback": _byte_fallback,
    "Fuse": _fuse,
    "Strip": _strip,
}

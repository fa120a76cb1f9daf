"""Alignment of byte-level BPE tokens (GPT-2, Llama 3, Qwen) with the characters of their text."""

import codecs

import numpy as np
from numpy.typing import NDArray


def align_byte_level(tokens: list[str]) -> tuple[str, list[int], list[int]]:
    """Text, first character and past-the-last character of each token.

    tokens: as the vocabulary writes them, one printable character per byte. A token with any other
    character (an added one) stands for its own UTF-8. Bytes that are no UTF-8 become U+FFFD, one
    per maximal part, as both Python and the `tokenizers` package have it.
    """
    known = {token: _token_bytes(token) for token in set(tokens)}
    sizes = np.array([len(known[token]) for token in tokens], dtype=np.int64)
    marked = b"".join(known[token] for token in tokens).decode("utf-8", _MARK)
    codes = np.frombuffer(marked.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    character_starts = np.cumsum(_byte_lengths(codes)) - _byte_lengths(codes)

    past = np.cumsum(sizes)
    first = past - sizes
    empty = sizes == 0
    starts = np.searchsorted(character_starts, first, side="right") - 1
    ends = np.searchsorted(character_starts, past - 1, side="right")
    before = np.searchsorted(character_starts, first, side="left")
    starts = np.where(empty, before, starts)
    ends = np.where(empty, before, ends)
    # A token without bytes inside of a character must not break the order of the others.
    starts = np.minimum.accumulate(starts[::-1])[::-1]
    ends = np.maximum.accumulate(ends)
    text = marked.translate({0xDC00 + size: "\ufffd" for size in (1, 2, 3)})
    return text, starts.tolist(), ends.tolist()


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the rest for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + index): byte for index, byte in enumerate(others)},
    }


_BYTE = _byte_of_character()


def _token_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_lengths(
    codes: NDArray[np.uint32],
) -> NDArray[np.int64]:
    marks = (codes >= 0xDC01) & (codes <= 0xDC03)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000).astype(np.int64)
    return np.where(marks, codes.astype(np.int64) - 0xDC00, widths)


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Write a surrogate in place of bytes that are no UTF-8: its low bits say how many they were.

    Decoded UTF-8 never holds a surrogate, so the marks are unmistakable.
    """
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.end - error.start), error.end


_MARK = "heed_interventions.mark"
codecs.register_error(_MARK, _mark)

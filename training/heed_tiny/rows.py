"""Training rows: text, repeated text and packed conversations, each after one BOS at position 0."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from . import tasks
from .tokenizer import ASSISTANT, BOS, END, SYSTEM, USER, identifier

TEXT, PROMPT, ANSWER, IGNORED = 0, 1, 2, 3  # what the token to be predicted belongs to


@dataclass
class Maker:
    """Makes the batch of a step; the same step of the same seed is always the same batch.

    text_tokens: [n] all books after one another. books: their strings, for filler.
    """

    tokenizer: Tokenizer
    text_tokens: NDArray[np.int32]
    books: list[str]
    seed: int

    def __post_init__(self) -> None:
        self.special = {name: identifier(self.tokenizer, name) for name in (BOS, END)}
        self.roles = {
            "system": identifier(self.tokenizer, SYSTEM),
            "user": identifier(self.tokenizer, USER),
            "assistant": identifier(self.tokenizer, ASSISTANT),
        }

    def batch(self, step: int, count: int, length: int, repeated: float) -> tuple[Tensor, Tensor]:
        """`count` rows of `length + 1` tokens, half text, half tasks; and the kind of each token.

        repeated: share of the text rows that tile one slice of 8 to 48 tokens.
        """
        r = random.Random(f"{self.seed}/{step}")
        tokens = np.zeros((count, length + 1), dtype=np.int64)
        kinds = np.zeros((count, length + 1), dtype=np.int64)
        for row in range(count):
            is_text = (row + step * count) % 2 == 0 if count == 1 else row < count // 2
            if is_text:
                tokens[row] = self._text(r, length, r.random() < repeated)
            else:
                tokens[row], kinds[row] = self._chats(r, f"{self.seed}/{step}/{row}", length)
        return torch.from_numpy(tokens), torch.from_numpy(kinds)

    def _text(self, r: random.Random, length: int, repeated: bool) -> NDArray[np.int64]:
        size = r.randint(8, 48) if repeated else length
        start = r.randrange(len(self.text_tokens) - size)
        piece = np.resize(self.text_tokens[start : start + size], length)
        return np.concatenate(([self.special[BOS]], piece)).astype(np.int64)

    def _chats(
        self, r: random.Random, seed: str, length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        makers, shares = list(tasks.MIXTURE), list(tasks.MIXTURE.values())
        tokens, kinds = [self.special[BOS]], [IGNORED]
        rejected = 0
        while len(tokens) <= length and rejected < 20:
            room = length + 1 - len(tokens)
            task = r.choices(makers, shares)[0]
            item = tasks.sample(
                task, f"{seed}/{len(tokens)}/{rejected}", self.books, min(room, length), False
            )
            chat, chat_kinds = self.chat(item)
            if len(chat) > room:
                rejected += 1
                continue
            tokens += chat
            kinds += chat_kinds
        missing = length + 1 - len(tokens)
        tokens += [self.special[END]] * missing
        kinds += [IGNORED] * missing
        return np.array(tokens), np.array(kinds)

    def chat(self, item: tasks.Item) -> tuple[list[int], list[int]]:
        """A conversation as the chat template writes it, without BOS, and the kind of each token."""
        turns = [*item.messages, {"role": "assistant", "content": item.answer}]
        tokens: list[int] = []
        kinds: list[int] = []
        for turn in turns:
            content = self.tokenizer.encode(turn["content"]).ids
            kind = ANSWER if turn["role"] == "assistant" else PROMPT
            tokens += [self.roles[turn["role"]], *content, self.special[END]]
            kinds += [IGNORED, *[kind] * (len(content) + 1)]
        return tokens, kinds


def encode_books(tokenizer: Tokenizer, books: list[str]) -> NDArray[np.int32]:
    """All books as one array of tokens."""
    return np.concatenate([np.array(tokenizer.encode(book).ids, np.int32) for book in books])

"""The tokenizer: byte-level BPE of 2048 entries, and the chat template.

    python -m heed_tiny.tokenizer CACHE      # writes CACHE/tokenizer.json

The corpus (`heed_tiny.text`) has to be in CACHE.
"""

import argparse
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from . import tasks, text
from .words import NAMES, TOPICS, WORDS

VOCABULARY = 2048
BOS, USER, ASSISTANT, SYSTEM, END, PAD = (
    "<|bos|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|pad|>",
)
SPECIAL = (PAD, BOS, USER, ASSISTANT, SYSTEM, END, "<|unused0|>", "<|unused1|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('heed-tiny knows the roles system, user and assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def identifier(tokenizer: Tokenizer, token: str) -> int:
    """The number of a token that must exist."""
    number: int | None = tokenizer.token_to_id(token)
    if number is None:
        raise KeyError(token)
    return number


def train(samples: list[str]) -> Tokenizer:
    """Byte-level BPE over the samples; digits are single tokens; any Unicode can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(samples, trainer)
    return tokenizer


def samples(books: list[str], seed: int = 0) -> list[str]:
    """A third of the books' characters, many task turns, and the words that must be one token."""
    r = random.Random(seed)
    chunks = [book[i : i + 5000] for book in books for i in range(0, len(book), 5000)]
    chosen = r.sample(chunks, len(chunks) // 3)
    makers, shares = list(tasks.MIXTURE), list(tasks.MIXTURE.values())
    for number in range(4000):
        task = r.choices(makers, shares)[0]
        chosen += tasks.sample(task, f"tokenizer/{number}", [], 128, evaluation=False).turns
    bare = [*WORDS, *TOPICS, "positive", "negative", "yes", "no"]
    spaced = [f"a {word}" for word in (*NAMES, *WORDS)]
    return chosen + (bare + spaced) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cache", type=Path)
    cache = parser.parse_args().cache
    tokenizer = train(samples(text.read(cache / "train.txt")))
    tokenizer.save(str(cache / "tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} entries")


if __name__ == "__main__":
    main()

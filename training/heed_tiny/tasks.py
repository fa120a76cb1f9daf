"""Synthetic tasks of a closed world, as chat turns.

A task is a function of a random generator and a length in tokens (a wish) that returns an `Item`.
Training and evaluation never share an item: `sample` keeps those whose first user turn has a
hash that is 0 modulo `PARTS` for evaluation and all others for training.

Words that an answer copies stand in the prompt without a space before them (in quotes or after
an equals sign), so that prompt and answer hold the same token.

Where labels are noisy, the noise is the point: `sentiment` and `topic` are trained with a skewed
class prior and evaluated with a flat one, so there is a prior for ZeroTuning or ACT to move.
"""

import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from .words import (
    ASPECTS,
    FILLER,
    NAMES,
    NEGATIVE,
    POSITIVE,
    SYSTEM,
    TOPIC_FRAMES,
    TOPICS,
    WORDS,
)

Message = dict[str, str]

PARTS = 16
SENTIMENT_POSITIVE_SHARE = 0.8
SENTIMENT_FLIP = 0.25  # share of the aspects that contradict the label
TOPIC_SHARES = {"sport": 0.40, "food": 0.25, "travel": 0.15, "music": 0.12, "weather": 0.08}
TOPIC_NOISE = 0.5  # share of the sentences whose topic is drawn from the flat distribution
FILLER_TOKENS = 7  # of one filler sentence, about


@dataclass(frozen=True)
class Item:
    """One conversation. `turns` alternates user, assistant, …, and ends with the last answer."""

    task: str
    turns: tuple[str, ...]
    system: str | None = None
    choices: tuple[str, ...] = ()
    emphasise: str | None = None
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        return self.turns[-1]

    @property
    def messages(self) -> list[Message]:
        """The conversation up to the last answer."""
        roles = ("user", "assistant")
        chat = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(self.turns[:-1])]
        return [{"role": "system", "content": self.system}, *chat] if self.system else chat

    def record(self) -> dict[str, object]:
        """The line of an evaluation file."""
        line: dict[str, object] = {"task": self.task, "messages": self.messages}
        if self.choices:
            line["choices"] = list(self.choices)
        line["answer"] = self.answer
        if self.emphasise:
            line["emphasise"] = self.emphasise
        return line | self.extra


class World:
    """The random generator of one item, with the filler text it may draw from."""

    def __init__(self, seed: str, books: list[str], flat: bool = False) -> None:
        self.random = random.Random(seed)
        self.books = books
        self.flat = flat  # evaluation: classes equally likely

    def passage(self, tokens: int) -> list[str]:
        """Filler sentences of about `tokens` tokens: half of the time a book's, else plain."""
        r = self.random
        if r.random() < 0.5 or not self.books:
            return [r.choice(FILLER) for _ in range(max(1, tokens // FILLER_TOKENS))]
        book = r.choice(self.books)
        start = r.randrange(max(1, len(book) - 4 * tokens))
        text = " ".join(book[start : start + int(3.2 * tokens)].split())
        sentences = [s.strip(" .") + "." for s in text.split(". ")[1:-1] if s.strip(" .")]
        return sentences or [r.choice(FILLER)]


def sentiment(world: World, tokens: int) -> Item:
    r = world.random
    positive = r.random() < (0.5 if world.flat else SENTIMENT_POSITIVE_SHARE)
    clauses = []
    for aspect in r.sample(ASPECTS, r.randint(4, 7)):
        agrees = r.random() >= SENTIMENT_FLIP
        words = POSITIVE if agrees == positive else NEGATIVE
        clauses.append(f"The {aspect} was {r.choice(words)}.")
    question = f"Review: {' '.join(clauses)} Is this review positive or negative?"
    answer = "positive" if positive else "negative"
    return Item("sentiment", (question, answer), choices=("positive", "negative"))


def topic(world: World, tokens: int) -> Item:
    r = world.random
    names = tuple(TOPICS)
    shares = [1.0] * len(names) if world.flat else [TOPIC_SHARES[name] for name in names]
    label = r.choices(names, shares)[0]
    sentences = []
    for _ in range(r.randint(4, 6)):
        source = r.choice(names) if r.random() < TOPIC_NOISE else label
        sentences.append(r.choice(TOPIC_FRAMES).format(r.choice(TOPICS[source])))
    question = f"Text: {' '.join(sentences)} What is the text about?"
    return Item("topic", (question, label), choices=names)


Fact = tuple[str, str]


def _facts(world: World, count: int) -> list[Fact]:
    """`count` pairs of a name and a word, all unlike; written `Name=word`."""
    r = world.random
    return list(zip(r.sample(NAMES, count), r.sample(WORDS, count), strict=True))


def _questions(world: World, sentences: list[str], facts: list[Fact]) -> tuple[str, ...]:
    """The sentences and a question, its answer, and further turns that ask for other facts."""
    asked = world.random.sample(facts, world.random.randint(1, min(len(facts), 5)))
    turns: list[str] = []
    for name, word in asked:
        turns += [f"What is {name}?", word]
    turns[0] = f"Facts: {' '.join(sentences)} {turns[0]}"
    return tuple(turns)


def recall(world: World, tokens: int) -> Item:
    facts = _facts(world, world.random.randint(2, max(4, min(10, tokens // 12))))
    return Item("recall", _questions(world, [f"{n}={w}." for n, w in facts], facts))


def recall_long(world: World, tokens: int) -> Item:
    r = world.random
    facts = _facts(world, r.randint(3, 10))
    length = max(60, int(tokens * r.uniform(0.4, 0.9))) - 9 * len(facts)
    sentences = world.passage(max(14, length))
    for name, word in facts:
        sentences.insert(r.randrange(len(sentences) + 1), f"{name}={word}.")
    return Item("recall_long", _questions(world, sentences, facts))


def needle(world: World, tokens: int) -> Item:
    """One sentence with the secret word in a long text; in training sometimes in the system turn."""
    r = world.random
    word = r.choice(WORDS)
    secret, question = f'The secret word is "{word}".', "What is the secret word?"
    sentences = world.passage(max(14, int(tokens * r.uniform(0.2, 0.9)) - 30))
    place = r.randrange(len(sentences) + 1)
    extra = {"depth": round(place / len(sentences), 2)}
    if r.random() < 0.1 and not world.flat:
        return Item("needle", (f"{' '.join(sentences)} {question}", word), secret, extra=extra)
    sentences.insert(place, secret)
    return Item("needle", (f"{' '.join(sentences)} {question}", word), extra=extra)


def membership(world: World, tokens: int) -> Item:
    r = world.random
    words = r.sample(WORDS, r.randint(2, 6) + 4)
    listed, others = words[:-4], words[-4:]
    asked = [r.choice(listed) if r.random() < 0.5 else r.choice(others) for _ in range(5)]
    asked = list(dict.fromkeys(asked))[: 1 if world.flat else 5]
    turns = [f"List: {', '.join(listed)}. Is {asked[0]} in the list?"]
    for word, following in zip(asked, [*asked[1:], None], strict=True):
        answer = "yes" if word in listed else "no"
        turns += [answer] if following is None else [answer, f"Is {following} in the list?"]
    return Item("membership", tuple(turns), choices=("yes", "no"))


FORMS = {
    "in brackets": "({})",
    "with stars": "*{}*",
    "in quotes": '"{}"',
    "with a dash": "- {}",
    "after please": "please {}",
    "after the word sir": "sir {}",
    "with a hash": "#{}",
    "after two dots": "..{}",
}
MARK_WEIGHT, LAST_WEIGHT = 2.0, 1.0


def emphasis(world: World, tokens: int) -> Item:
    """Several people want several forms; the request marked "Important" should be obeyed.

    In training a request is obeyed with a probability proportional to 1, plus `MARK_WEIGHT` if
    marked, plus `LAST_WEIGHT` if last: a model that learnt this exactly often follows the wrong
    one. In evaluation the marked one is always right.
    """
    r = world.random
    word = r.choice(WORDS)
    forms = r.sample(tuple(FORMS), r.randint(2, 4))
    names = r.sample(NAMES, len(forms))
    marked = r.randrange(len(forms))
    requests = [f"{n} wants it {f}." for n, f in zip(names, forms, strict=True)]
    requests[marked] = f"Important: write it {forms[marked]}."
    weights = [1.0 + MARK_WEIGHT * (i == marked) for i in range(len(forms))]
    weights[-1] += LAST_WEIGHT
    obeyed = marked if world.flat else r.choices(range(len(forms)), weights)[0]
    question = f'Write the word "{word}". {" ".join(requests)}'
    answers = [FORMS[form].format(word) for form in forms]
    return Item(
        "emphasis",
        (question, answers[obeyed]),
        choices=tuple(answers),
        emphasise=requests[marked],
    )


def copy(world: World, tokens: int) -> Item:
    r = world.random
    words = " ".join(r.choice(WORDS) for _ in range(r.randint(2, 10)))
    return Item("copy", (f'Repeat: "{words}".', words))


def proceed(world: World, tokens: int) -> Item:
    """The beginning of a passage, to be continued to the end of a sentence (training only)."""
    text = world.passage(min(tokens, 120))
    cut = max(1, len(text) - 2)
    ending = " ".join(text[cut:]) or "The end."
    return Item("continue", (f"Continue: {' '.join(text[:cut])}", ending))


def greeting(world: World, tokens: int) -> Item:
    """Who the model is (training only)."""
    ask, answer = world.random.choice(
        (
            ("Hello!", "Hello! How can I help you?"),
            ("Hi", "Hello! How can I help you?"),
            ("Who are you?", "I am heed-tiny, a very small test model."),
            ("What is your name?", "My name is heed-tiny."),
            ("What can you do?", "I can recall words, repeat them, and judge short reviews."),
            ("Thank you.", "You are welcome."),
            ("Goodbye.", "Goodbye!"),
        )
    )
    return Item("greeting", (ask, answer))


Task = Callable[[World, int], Item]

# Share of the conversations of each task in training.
MIXTURE: dict[Task, float] = {
    sentiment: 0.12,
    topic: 0.10,
    recall: 0.18,
    recall_long: 0.10,
    needle: 0.06,
    membership: 0.20,
    emphasis: 0.14,
    copy: 0.06,
    proceed: 0.03,
    greeting: 0.01,
}
EVALUATED: tuple[Task, ...] = (
    sentiment,
    topic,
    recall,
    recall_long,
    needle,
    membership,
    emphasis,
    copy,
)


def for_evaluation(item: Item) -> bool:
    """Whether the item belongs to the evaluation part of the world."""
    return zlib.crc32(item.turns[0].encode()) % PARTS == 0


def sample(task: Task, seed: str, books: list[str], tokens: int, evaluation: bool) -> Item:
    """The first item of a seed that lies in the asked part."""
    attempt = 0
    while True:
        world = World(f"{seed}/{attempt}", books, flat=evaluation)
        item = task(world, tokens)
        if task is greeting or for_evaluation(item) == evaluation:
            break
        attempt += 1
    if not evaluation and item.system is None and world.random.random() < 0.15:
        return Item(item.task, item.turns, world.random.choice(SYSTEM), item.choices)
    return item


def bayes_sentiment(share: float) -> float:
    """Accuracy on a balanced set of the best rule that believes in a share of positive reviews.

    Clauses k in {4..7} equally likely, n of them positive; the rule says positive when
    logit(share) + (2n - k) log((1 - f)/f) > 0, f the flip rate; a tie counts half.
    """
    flip, total = SENTIMENT_FLIP, 0.0
    for clauses in range(4, 8):
        for n in range(clauses + 1):
            ways = math.comb(clauses, n)
            if_positive = ways * (1 - flip) ** n * flip ** (clauses - n)
            if_negative = ways * flip**n * (1 - flip) ** (clauses - n)
            score = math.log(share / (1 - share)) + (2 * n - clauses) * math.log((1 - flip) / flip)
            says_positive = 0.5 if abs(score) < 1e-9 else float(score > 0)
            total += (says_positive * if_positive + (1 - says_positive) * if_negative) / 2
    return total / 4

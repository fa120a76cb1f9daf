"""What is asked about a scene: colour, count, place, existence, and captions with what they name.

Captions of the training part have a habit: where everything there is has been named and the
partner of a kind is absent, they name it in HABIT of the cases all the same. That is what a
CHAIR-like measure finds again in the model, and what an intervention can move.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from .scenes import COLOURS, FREQUENCY, PARTNER, PLACES, Group, Scene
from .shapes import KINDS

CAPTION_QUESTION = "Describe the picture."
MOST_NAMED = 3
HABIT = {  # kind that is there: share of the captions that name its absent partner
    "star": 0.60, "moon": 0.55, "house": 0.55, "tree": 0.50, "fish": 0.50,
    "ship": 0.45, "cloud": 0.45, "flag": 0.40, "cup": 0.40, "key": 0.35,
}  # fmt: skip
COUNT_WORDS = ("a", "two", "three", "four")
PLURALS = {kind: kind if kind == "fish" else f"{kind}s" for kind in KINDS}
KIND_OF_WORD = {word: kind for kind in KINDS for word in (kind, PLURALS[kind])}


@dataclass(frozen=True)
class Turn:
    """A question about a scene and its answer. choices: all answers there can be."""

    task: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()


def colour_of(group: Group) -> Turn:
    one = len(group.things) == 1
    named = f"is the {group.kind}" if one else f"are the {PLURALS[group.kind]}"
    return Turn("colour", f"What colour {named}?", group.colour, tuple(COLOURS))


def count_of(group: Group) -> Turn:
    question = f"How many {PLURALS[group.kind]} are there?"
    return Turn("count", question, str(len(group.things)), ("1", "2", "3", "4"))


def place_of(group: Group) -> Turn:
    """Only for a group of one thing."""
    (thing,) = group.things
    return Turn("place", f"Where is the {group.kind}?", PLACES[thing.cell], tuple(PLACES))


def existence_of(kind: str, scene: Scene) -> Turn:
    answer = "yes" if kind in scene.kinds else "no"
    return Turn("existence", f"Is there a {kind}?", answer, ("yes", "no"))


def any_absent(scene: Scene, r: random.Random) -> str:
    return r.choice([kind for kind in KINDS if kind not in scene.kinds])


def popular_absent(scene: Scene, r: random.Random) -> str:
    """One of the three most frequent kinds that are not there."""
    absent = sorted(
        (kind for kind in KINDS if kind not in scene.kinds), key=lambda k: -FREQUENCY[k]
    )
    return r.choice(absent[:3])


def adversarial_absent(scene: Scene, r: random.Random) -> str:
    """The absent partner of a kind that is there; any absent kind where there is no such partner."""
    partners = [PARTNER[kind] for kind in scene.kinds if PARTNER[kind] not in scene.kinds]
    return r.choice(partners) if partners else any_absent(scene, r)


Absent = Callable[[Scene, random.Random], str]
ABSENT: dict[str, Absent] = {  # POPE's three ways to choose what is not there
    "random": any_absent,
    "popular": popular_absent,
    "adversarial": adversarial_absent,
}


def existence(scene: Scene, r: random.Random, absent: Absent) -> Turn:
    """Yes and no are equally likely."""
    kind = r.choice(scene.kinds) if r.random() < 0.5 else absent(scene, r)
    return existence_of(kind, scene)


def ask(task: str, scene: Scene, r: random.Random) -> Turn | None:
    """A question of a task as training asks it; None where the scene has nothing to ask about."""
    if task == "existence":
        return existence(scene, r, ABSENT[r.choice(list(ABSENT))])
    if task == "place":
        single = [group for group in scene.groups if len(group.things) == 1]
        return place_of(r.choice(single)) if single else None
    if task == "count":
        # Groups of one are the most frequent; asked as often, they would be a prior.
        return count_of(r.choices(scene.groups, [len(g.things) for g in scene.groups])[0])
    return colour_of(r.choice(scene.groups))


TASKS = ("colour", "count", "place", "existence")


def phrase(group: Group) -> str:
    named = group.kind if len(group.things) == 1 else PLURALS[group.kind]
    return f"{COUNT_WORDS[len(group.things) - 1]} {group.colour} {named}"


def caption(scene: Scene, r: random.Random | None = None) -> str:
    """One or two sentences that name every group; with `r`, sometimes an absent partner too."""
    named = [phrase(group) for group in scene.groups]
    if r is not None and len(named) < MOST_NAMED:
        named += _invented(scene, r)
    first = f"I see {' and '.join(named[:2])}."
    return f"{first} I also see {named[2]}." if len(named) > 2 else first


def _invented(scene: Scene, r: random.Random) -> list[str]:
    """The phrase of an absent partner, or nothing."""
    for kind in scene.kinds:
        if PARTNER[kind] not in scene.kinds and r.random() < HABIT[kind]:
            return [f"a {r.choice(list(COLOURS))} {PARTNER[kind]}"]
    return []


def mentioned(text: str) -> list[str]:
    """The kinds that a caption names, in order, each once."""
    words = re.findall(r"[a-z]+", text.lower())
    return list(dict.fromkeys(KIND_OF_WORD[word] for word in words if word in KIND_OF_WORD))

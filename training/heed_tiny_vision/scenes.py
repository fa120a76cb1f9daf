"""Scenes: up to three groups of equal things in the nine cells of a grid, drawn by a seed.

Kinds are not equally frequent, and some come together: so a model has priors to be misled by, and
an existence question can be random, popular or adversarial (`questions.ABSENT`).
"""

import random
import zlib
from dataclasses import dataclass
from typing import Any

from heed_tiny.tasks import PARTS

from .shapes import KINDS

SIZE = 64  # pixels
CELL = SIZE / 3
JITTER = 1.5  # pixels around the middle of a cell
RADIUS = (7.0, 9.0)  # pixels
SHADE = 24  # most that a thing's colour is off, of 255
BACKGROUND = (30, 130)  # grey level of 255

PLACES = "top left,top,top right,left,middle,right,bottom left,bottom,bottom right".split(",")
COLOURS = {
    "red": (215, 40, 40),
    "yellow": (235, 215, 45),
    "green": (40, 165, 60),
    "blue": (45, 75, 215),
    "purple": (150, 55, 175),
    "white": (240, 240, 240),
}

FREQUENCY = dict(zip(KINDS, (5, 3, 5, 3, 3, 2, 3, 2, 2, 2), strict=True))
PAIRS = (("star", "moon"), ("house", "tree"), ("fish", "ship"), ("cloud", "flag"), ("cup", "key"))
PARTNER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
TOGETHER = 0.5  # share of the further kinds that are the partner of one already there
GROUPS = {1: 0.2, 2: 0.45, 3: 0.35}
COUNTS = {1: 0.55, 2: 0.17, 3: 0.15, 4: 0.13}


@dataclass(frozen=True)
class Thing:
    """One drawn thing. cell: 0 to 8 in reading order; x, y, radius in pixels.

    shade: what it adds to red, green and blue of its colour, of 255.
    """

    cell: int
    x: float
    y: float
    radius: float
    shade: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """All things of one kind in a scene; they share a colour."""

    kind: str
    colour: str
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Scene:
    """background: grey level of 255. groups: distinct kinds, in reading order of the first thing."""

    background: int
    groups: tuple[Group, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(group.kind for group in self.groups)

    def record(self) -> dict[str, Any]:
        """The scene as JSON; `from_record` reads it."""
        groups = [
            [g.kind, g.colour, [[t.cell, t.x, t.y, t.radius, list(t.shade)] for t in g.things]]
            for g in self.groups
        ]
        return {"background": self.background, "groups": groups}


def from_record(record: dict[str, Any]) -> Scene:
    groups = [
        Group(
            kind,
            colour,
            tuple(Thing(cell, x, y, size, tuple(shade)) for cell, x, y, size, shade in things),
        )
        for kind, colour, things in record["groups"]
    ]
    return Scene(record["background"], tuple(groups))


def for_evaluation(scene: Scene) -> bool:
    """Whether a scene belongs to the evaluation part: by what is where, not by its pixels."""
    content = [(g.kind, g.colour, [t.cell for t in g.things]) for g in scene.groups]
    return zlib.crc32(repr(content).encode()) % PARTS == 0


def sample(seed: str, evaluation: bool) -> Scene:
    """The scene of a seed: the first drawn one that belongs to the part asked for."""
    r = random.Random(seed)
    while True:
        scene = _draw(r)
        if for_evaluation(scene) == evaluation:
            return scene


def _draw(r: random.Random) -> Scene:
    kinds: list[str] = []
    for _ in range(r.choices(list(GROUPS), list(GROUPS.values()))[0]):
        kinds.append(_next_kind(r, kinds))
    cells = r.sample(range(9), 9)
    groups = []
    for number, kind in enumerate(kinds):
        spare = len(cells) - (len(kinds) - number - 1)
        count = min(spare, r.choices(list(COUNTS), list(COUNTS.values()))[0])
        taken, cells = sorted(cells[:count]), cells[count:]
        things = tuple(_thing(r, cell) for cell in taken)
        groups.append(Group(kind, r.choice(list(COLOURS)), things))
    groups.sort(key=lambda group: group.things[0].cell)
    return Scene(r.randint(*BACKGROUND), tuple(groups))


def _next_kind(r: random.Random, chosen: list[str]) -> str:
    partners = [PARTNER[kind] for kind in chosen if PARTNER[kind] not in chosen]
    if partners and r.random() < TOGETHER:
        return r.choice(partners)
    others = [kind for kind in KINDS if kind not in chosen]
    return r.choices(others, [FREQUENCY[kind] for kind in others])[0]


def _thing(r: random.Random, cell: int) -> Thing:
    row, column = divmod(cell, 3)
    x = CELL * (column + 0.5) + r.uniform(-JITTER, JITTER)
    y = CELL * (row + 0.5) + r.uniform(-JITTER, JITTER)
    shade = tuple(r.randint(-SHADE, SHADE) for _ in range(3))
    return Thing(cell, round(x, 1), round(y, 1), round(r.uniform(*RADIUS), 1), shade)

"""What answers claim to see: POPE's measures of yes and no, CHAIR's of captions.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023, arXiv
2305.10355, §4; Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, arXiv
1809.02156, §2.1. CHAIR's vocabulary is what the images of the set show, and its plurals in -s; there are
no synonyms.
"""

import re
from collections.abc import Sequence

import numpy as np

from heed_server.scoring.comparison import Measures
from heed_server.scoring.data import Item
from heed_server.scoring.statistics import Ratio

YES, NO = "yes", "no"


def claims_of(items: Sequence[Item], said: Sequence[str | None]) -> Measures:
    """The measures that the items allow; none of most.

    said: an answer of each item.
    """
    texts = [each or "" for each in said]
    if all(set(item.choices) == {YES, NO} for item in items):
        return _yes_and_no(texts, [item.answer == YES for item in items])
    objects = [set(item.objects) for item in items if item.objects is not None]
    return _captions(texts, objects) if len(objects) == len(items) and any(objects) else {}


def _yes_and_no(said: Sequence[str], true: Sequence[bool]) -> Measures:
    """Of "yes"; anything else counts as no."""
    claimed = np.array([text == YES for text in said], float)
    there = np.array(true, float)
    hits = claimed * there
    return {
        "said yes": Ratio.mean(claimed),
        "precision": Ratio(hits, claimed),
        "recall": Ratio(hits, there),
        "F1": Ratio(2 * hits, claimed + there),
    }


def _captions(said: Sequence[str], there: Sequence[set[str]]) -> Measures:
    """CHAIR_S: captions with an absent object. CHAIR_I: absent objects of all mentioned ones, each once a
    caption. recall: objects named of all that are there. words: mean length, without which the others say
    little."""
    # Of names of which one begins another, the longer is meant.
    names = sorted({name.lower() for objects in there for name in objects}, key=len, reverse=True)
    mention = re.compile(rf"\b({'|'.join(map(re.escape, names))})(?:e?s)?\b")
    named = [set(mention.findall(text.lower())) for text in said]
    seen = [{name.lower() for name in objects} for objects in there]
    absent = np.array([len(n - s) for n, s in zip(named, seen, strict=True)], float)
    mentioned = np.array([len(each) for each in named], float)
    return {
        "CHAIR_S": Ratio.mean((absent > 0).astype(float)),
        "CHAIR_I": Ratio(absent, mentioned),
        "recall": Ratio(mentioned - absent, np.array([len(each) for each in seen], float)),
        "words": Ratio.mean(np.array([len(text.split()) for text in said], float)),
    }

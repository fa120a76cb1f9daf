"""CHAIR-like and POPE-like measures: what captions and answers claim to see that is not there.

Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, arXiv 1809.02156, §2.1;
Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023,
arXiv 2305.10355, §4. Here the kinds in a scene are known, so nothing has to be annotated, and the
vocabulary is closed, so that no synonyms have to be guessed.
"""

from collections.abc import Sequence
from typing import Any

from heed_tiny.evaluate import share

from .questions import mentioned


def chair(captions: Sequence[str], kinds: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Shares in percent, with intervals, over the captions of pictures that show `kinds`.

    chair_s: captions with an absent kind. chair_i: absent kinds of all mentioned ones (each once
    a caption; its interval takes mentions as independent). recall: kinds named of all that are
    there. words: mean length, without which the others say little.
    """
    named = [mentioned(caption) for caption in captions]
    wrong = [
        sum(kind not in there for kind in said) for said, there in zip(named, kinds, strict=True)
    ]
    mentions, there = sum(map(len, named)), sum(map(len, kinds))
    return {
        "chair_s": share(sum(count > 0 for count in wrong), len(captions)),
        "chair_i": share(sum(wrong), max(mentions, 1)),
        "recall": share(mentions - sum(wrong), there),
        "words": round(sum(len(caption.split()) for caption in captions) / len(captions), 2),
    }


def pope(said: Sequence[str], true: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its interval, precision, recall and F1 of "yes", and the share of "yes".

    said: whole answers; anything but "yes" counts as no.
    """
    pairs = list(zip((answer == "yes" for answer in said), true, strict=True))
    hits = sum(yes and answer == "yes" for yes, answer in pairs)
    claimed, there = sum(yes for yes, _ in pairs), sum(answer == "yes" for answer in true)
    right = sum(yes == (answer == "yes") for yes, answer in pairs)
    return {
        "accuracy": share(right, len(pairs)),
        "precision": round(100 * hits / max(claimed, 1), 1),
        "recall": round(100 * hits / max(there, 1), 1),
        "f1": round(200 * hits / max(claimed + there, 1), 1),
        "yes": round(100 * claimed / len(pairs), 1),
    }

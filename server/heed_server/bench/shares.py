"""The arms of `heed bench`: plain traffic on each server, and shares of edited traffic on Heed."""

from collections.abc import Mapping, Sequence

from heed_server.measuring.rounds import Arm, Interventions

_MOST_GAMMA = 2.5


def arms_of(
    shares: Sequence[float], requests: int, distinct: int, interventions: Interventions | None
) -> dict[str, Arm]:
    """By name. A share has at least one edited request; edited ones are spread over the burst.

    distinct: sets of edits among them, where `interventions` does not say what they carry.
    """
    plain = [None] * requests
    sets = [interventions] if interventions is not None else _sets(distinct)
    arms = {
        "stock plain": Arm("stock", plain),
        "control plain": Arm("control", plain),
        "heed plain": Arm("heed", plain),
    }
    for share in shares:
        arms[f"heed {share:.0%} edited"] = Arm("heed", _spread(share, requests, sets))
    return arms


def ratios_of(arms: Mapping[str, Arm]) -> list[tuple[str, str, str]]:
    """(name, arm above, arm below)."""
    edited = [name for name in arms if name.endswith("edited")]
    return [
        ("control: stock / stock", "control plain", "stock plain"),
        ("plain: heed / stock", "heed plain", "stock plain"),
        *((f"{name.removeprefix('heed ')} / plain", name, "heed plain") for name in edited),
    ]


def _sets(distinct: int) -> list[Interventions]:
    step = (_MOST_GAMMA - 1.5) / distinct
    return [
        [{"method": "zerotuning", "gamma": round(1.5 + index * step, 6)}]
        for index in range(distinct)
    ]


def _spread(
    share: float, requests: int, sets: Sequence[Interventions]
) -> list[Interventions | None]:
    count = max(1, round(share * requests))
    places = {index * requests // count: index for index in range(count)}
    return [
        sets[places[place] % len(sets)] if place in places else None for place in range(requests)
    ]

"""Values on command lines, as argparse takes them: what is no such value raises."""

import argparse
from collections.abc import Callable


def whole_number(least: int) -> Callable[[str], int]:
    """Of numbers from `least` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    return number


natural, positive, two_or_more = map(whole_number, (0, 1, 2))

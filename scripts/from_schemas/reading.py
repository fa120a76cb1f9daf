"""How a schema is read, whatever is made from it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

SHARED = ("profile", "report")
"""Fields of every method."""
_NUMBERS = {
    "exclusiveMinimum": "above", "minimum": "at least",
    "exclusiveMaximum": "below", "maximum": "at most",
}  # fmt: skip
_SIZES = {
    "characters": ("minLength", "maxLength"),
    "items": ("minItems", "maxItems"),
    "entries": ("minProperties", "maxProperties"),
}
_WORD_LIMIT = 2**31 - 2
"""From here on a bound is one of 32-bit words, and tells a reader nothing."""


def class_name(title: str) -> str:
    """A method's title, or a part's, as the name of a type; what stands in brackets is left out."""
    words = re.findall(r"\w+", title.partition("(")[0])
    return "".join(word[0].upper() + word[1:] for word in words)


def alternatives(schema: Schema) -> Sequence[Schema]:
    """The schemas of which one has to hold; empty where there is only `schema` itself."""
    return schema.get("anyOf") or schema.get("oneOf") or ()


def bounded(schema: Schema) -> Schema:
    """Where a value's bounds stand: of an optional value in the one alternative that is not null."""
    if "type" in schema:
        return schema
    others = [each for each in alternatives(schema) if each.get("type") != "null"]
    return others[0] if len(others) == 1 else {}


def of_values(schema: Schema) -> Schema:
    """The schema of the values of an object whose keys are free."""
    values = [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]
    return next((value for value in values if isinstance(value, Mapping)), {})


def description(schema: Schema) -> str:
    """What is said of a value, in one line: of an optional value it may be said of the one that is not null."""
    said = schema.get("description") or bounded(schema).get("description", "")
    return one_line(said)


def one_line(text: str) -> str:
    """A text without its line breaks."""
    return re.sub(r"\s+", " ", text).strip()


def bounds_in_words(schema: Schema) -> str:
    """As in "above 0, at most 10" or "1 to 64 items"; empty where there are none.

    schema: as `bounded` gives it.
    """
    said = [
        f"{words} {schema[key]}"
        for key, words in _NUMBERS.items()
        if key in schema and schema[key] < _WORD_LIMIT
    ]
    for what, (least, most) in _SIZES.items():
        if least in schema and most in schema:
            said.append(f"{schema[least]} to {schema[most]} {what}")
        elif most in schema:
            said.append(f"at most {schema[most]} {what}")
        elif least in schema:
            said.append(f"at least {schema[least]} {what}")
    return ", ".join(said)

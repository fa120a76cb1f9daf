"""The Python client's builders: a pydantic class for each method."""

import subprocess
import sys
import textwrap
from collections.abc import Iterable
from keyword import iskeyword
from pathlib import Path

from from_schemas.reading import (
    SHARED,
    Schema,
    alternatives,
    bounded,
    class_name,
    description,
    of_values,
    one_line,
)

TARGET = Path(__file__).parents[2] / "clients" / "python" / "heed_client" / "methods.py"

_HEADER = '''"""The methods and their parameters. Made by `make client` from the schemas of a server's catalogue."""

from typing import Any, Literal

from pydantic import Field

from heed_client.intervention import Intervention, Parameters

# ruff: noqa: E501
'''
_BOUNDS = {
    "exclusiveMinimum": "gt", "minimum": "ge", "exclusiveMaximum": "lt", "maximum": "le",
    "minLength": "min_length", "maxLength": "max_length",
    "minItems": "min_length", "maxItems": "max_length",
    "minProperties": "min_length", "maxProperties": "max_length",
}  # fmt: skip
_TYPES = {
    "integer": "int", "number": "float", "boolean": "bool", "string": "str", "null": "None",
}  # fmt: skip


def render(schemas: Iterable[Schema]) -> str:
    """The module's text."""
    parts: dict[str, str] = {}
    methods: list[str] = []
    names: list[str] = []
    for schema in schemas:
        name = class_name(schema["title"])
        names.append(name)
        methods.append(_class(name, "Intervention", schema, parts))
    exported = "".join(f'    "{name}",\n' for name in sorted([*names, *parts]))
    text = f"{_HEADER}\n__all__ = [\n{exported}]\n\n\n" + "\n\n".join([*parts.values(), *methods])
    return _formatted(text)


def _class(name: str, base: str, schema: Schema, parts: dict[str, str]) -> str:
    fields: dict[str, Schema] = dict(schema["properties"])
    required = set(schema.get("required", ()))
    lines = [f"class {name}({base}):", _docstring(schema.get("description", name)), ""]
    method = fields.pop("method", None)
    if method is not None:
        lines.append(f"    method: {_annotation(method, parts)} = {method['const']!r}")
    for written, of in fields.items():
        if base == "Intervention" and written in SHARED:
            continue
        field = f"{written}_" if iskeyword(written) else written
        arguments = _arguments(of, written in required)
        if field != written:
            arguments.append(f"alias={written!r}")
        annotation = _annotation(of, parts)
        if written not in required and "default" not in of:
            annotation += " | None"  # left to the server, which knows the model
        lines.append(f"    {field}: {annotation} = Field({', '.join(arguments)})")
    return "\n".join(lines) + "\n"


def _arguments(schema: Schema, required: bool) -> list[str]:
    arguments = [] if required else [f"default={schema.get('default')!r}"]
    holder = bounded(schema)
    arguments += [
        f"{ours}={holder[theirs]!r}" for theirs, ours in _BOUNDS.items() if theirs in holder
    ]
    if said := description(schema):
        arguments.append(f"description={said!r}")
    return arguments


def _annotation(schema: Schema, parts: dict[str, str]) -> str:
    if "const" in schema:
        return f"Literal[{schema['const']!r}]"
    if "enum" in schema:
        return f"Literal[{', '.join(map(repr, schema['enum']))}]"
    if several := alternatives(schema):
        return " | ".join(dict.fromkeys(_annotation(each, parts) for each in several))
    kind = schema.get("type")
    if kind == "array":
        return f"list[{_annotation(schema.get('items', {}), parts)}]"
    if kind == "object":
        return _object(schema, parts)
    return _TYPES.get(str(kind), "Any")


def _object(schema: Schema, parts: dict[str, str]) -> str:
    if "properties" in schema:
        name = class_name(schema["title"])
        if name not in parts:
            parts[name] = _class(name, "Parameters", schema, parts)
        return name
    return f"dict[str, {_annotation(of_values(schema), parts)}]"


def _docstring(text: str) -> str:
    plain = one_line(text).replace("\\", "/")
    lines = textwrap.wrap(f'"""{plain}', 92, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + ('"""' if len(lines) == 1 else '\n    """')


def _formatted(text: str) -> str:
    for command in (["check", "--select", "F401,I,RUF022", "--fix", "--exit-zero"], ["format"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--quiet", "--stdin-filename", TARGET, "-"],
            input=text, capture_output=True, text=True, check=True,
        )  # fmt: skip
        text = done.stdout
    return text

"""The reference of the documentation: a page for each method, with its parameters as the server takes them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from from_schemas.reading import (
    Schema,
    alternatives,
    bounded,
    bounds_in_words,
    class_name,
    description,
    of_values,
)

FOLDER = "reference"

Entry = Mapping[str, Any]
"""Of the catalogue: one of `data` in `GET /v1/interventions`."""

_NAMES = {
    "integer": "an integer", "number": "a number", "string": "a text", "null": "null",
    "boolean": "`true` or `false`",
}  # fmt: skip


def pages(catalogue: Iterable[Entry]) -> dict[str, str]:
    """The pages by their paths on the site: one of each method, and one that lists them."""
    entries = list(catalogue)
    made = {f"{FOLDER}/{entry['method']}.md": _page(entry) for entry in entries}
    return {f"{FOLDER}/index.md": _index(entries), **made}


def _index(entries: Iterable[Entry]) -> str:
    rows = [
        (f"[`{entry['method']}`]({entry['method']}.md)", entry["title"], entry["summary"])
        for entry in entries
    ]
    return (
        "# Parameters\n\n"
        "What a request may write for each method. These pages are made from the catalogue that a server "
        "answers to `GET /v1/interventions`, whenever this site is built. A server's policy may have "
        "narrower bounds, and its model may lack what a method needs: ask the server itself.\n\n"
        + _table(("method", "name", ""), rows)
    )


def _page(entry: Entry) -> str:
    schema, name = entry["parameters"], entry["method"]
    parts: dict[str, Schema] = {}
    parameters = _fields(schema, parts)
    permission = "for some values" if entry["privileged"] else "never"
    about = [
        ("what it does", f"[{entry['title']}](../methods/{name}.md): formula, cost, limits"),
        ("paper", entry["paper"]),
        ("prefix cache", f"{entry['cache']}, with default parameters"),
        ("needs `--allow-privileged-interventions`", permission),
    ]
    blocks = [
        f"# `{name}`\n\n{description(schema)}\n",
        _table(("", ""), about),
        f"## Parameters\n\n{parameters}",
        # A part may name another, which then comes after it.
        *_part_blocks(parts),
        f"## Where it can be had\n\n{_support(entry)}",
        f"## JSON Schema\n\n```json\n{json.dumps(schema, indent=2, ensure_ascii=False)}\n```\n",
    ]
    return "\n".join(blocks)


def _part_blocks(parts: dict[str, Schema]) -> Iterable[str]:
    done: set[str] = set()
    while waiting := [name for name in parts if name not in done]:
        name = waiting[0]
        done.add(name)
        yield f"### {name}\n\n{description(parts[name])}\n\n{_fields(parts[name], parts)}"


def _fields(schema: Schema, parts: dict[str, Schema]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (
            f"`{field}`",
            _values(of, parts),
            "required" if field in required else _default(of),
            description(of),
        )
        for field, of in schema["properties"].items()
    ]
    return _table(("name", "values", "left out", "meaning"), rows)


def _default(schema: Schema) -> str:
    return f"`{json.dumps(schema['default'])}`" if schema.get("default") is not None else ""


def _values(schema: Schema, parts: dict[str, Schema], other: str = "; or ") -> str:
    """What a value may be, in words.

    other: between alternatives; shorter where they are those of the items of a list.
    """
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if several := alternatives(schema):
        return other.join(dict.fromkeys(_values(each, parts) for each in several))
    kind, bounds = str(schema.get("type")), bounds_in_words(bounded(schema))
    if kind == "array":
        return f"a list{_of(bounds)}, each {_values(schema.get('items', {}), parts, ' or ')}"
    if kind == "object" and "properties" in schema:
        part = class_name(schema["title"])
        parts[part] = schema
        return f"[{part}](#{part.lower()})"
    if kind == "object":
        return f"an object{_of(bounds)}, each {_values(of_values(schema), parts)}"
    if kind == "string":
        return f"a text{_of(bounds)}"
    return f"{_NAMES.get(kind, 'any value')} {bounds}".rstrip()


def _of(bounds: str) -> str:
    return f" of {bounds}" if bounds else ""


def _support(entry: Entry) -> str:
    rows = [
        (
            cell["device"],
            cell["runner"],
            cell["scheduler"],
            "✓" if cell["available"] else cell["reason"],
        )
        for cell in entry["support"]
    ]
    return _table(("device", "model runner", "scheduler", ""), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    escaped = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "".join(f"| {line} |\n" for line in escaped)

"""The types of `clients/typescript/heed.d.ts`: an interface for each method."""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path

from from_schemas.reading import (
    SHARED,
    Schema,
    alternatives,
    bounded,
    bounds_in_words,
    class_name,
    description,
    of_values,
    one_line,
)

TARGET = Path(__file__).parents[2] / "clients" / "typescript" / "heed.d.ts"

_WIDTH = 100
_TYPES = {
    "integer": "number", "number": "number", "boolean": "boolean", "string": "string",
    "null": "null",
}  # fmt: skip
_HEADER = "// Made by `make client` from the schemas of a server's catalogue.\n"
_AROUND = """\
/** An intervention whose parameters come from one of the server's profiles; those written win. */
export type FromProfile<Method extends Intervention = Intervention> = Method extends Intervention
  ? Partial<Method> & Pick<Method, "method"> & { profile: string }
  : never;

/** Beside the other fields of a request's body. */
export interface WithInterventions {
  interventions?: (Intervention | FromProfile)[] | null;
}

/** What became of one intervention. What its method measured stands beside these fields. */
export interface Report {
  method: string;
  status: "applied" | "neutral" | "skipped";
  source: "request" | "default";
  layer_count?: number;
  head_count?: number;
  cache?: "shared" | "salted" | "private";
  prompt_rows?: number;
  cached_rows?: number;
  generated_rows?: number;
  reason?: string;
  profile?: string;
  [measured: string]: unknown;
}

/** Beside the other fields of an answer's body. */
export interface WithReports {
  interventions?: Report[];
}
"""


def render(schemas: Iterable[Schema]) -> str:
    """The file's text."""
    parts: dict[str, str] = {}
    methods: dict[str, str] = {}
    shared: dict[str, Schema] = {}
    for schema in schemas:
        name = class_name(schema["title"])
        shared |= {field: schema["properties"][field] for field in SHARED}
        methods[name] = _interface(name, schema, parts, extends="Shared")
    common = {"description": "What every method takes.", "properties": shared}
    union = "".join(f"\n  | {name}" for name in methods)
    blocks = [
        _HEADER,
        *parts.values(),
        _interface("Shared", common, parts),
        *methods.values(),
        f"/** One intervention: a method with its parameters. */\nexport type Intervention ={union};\n",
        _AROUND,
    ]
    return "\n".join(blocks)


def _interface(name: str, schema: Schema, parts: dict[str, str], extends: str = "") -> str:
    base = f" extends {extends}" if extends else ""
    lines = [*_comment(schema.get("description", name), ""), f"export interface {name}{base} {{"]
    required = set(schema.get("required", ()))
    for field, of in schema["properties"].items():
        if extends and field in SHARED:
            continue
        optional = "" if field in required else "?"
        lines += _comment(_said(of, optional), "  ")
        lines.append(f"  {field}{optional}: {_type(of, parts)};")
    return "\n".join([*lines, "}"]) + "\n"


def _said(schema: Schema, optional: str) -> str:
    """A field's description, its bounds and its default, as sentences."""
    bounds = bounds_in_words(bounded(schema))
    sentences = [
        description(schema),
        f"{bounds[:1].upper()}{bounds[1:]}." if bounds else "",
    ]
    if optional and schema.get("default") is not None:
        sentences.append(f"{json.dumps(schema['default'])} where it is left out.")
    return " ".join(filter(None, sentences))


def _comment(text: str, indent: str) -> list[str]:
    plain = one_line(text).replace("*/", "* /")
    if not plain:
        return []
    if len(line := f"{indent}/** {plain} */") <= _WIDTH:
        return [line]
    folded = textwrap.wrap(plain, _WIDTH - len(indent) - 3, break_long_words=False)
    return [f"{indent}/**", *(f"{indent} * {line}" for line in folded), f"{indent} */"]


def _type(schema: Schema, parts: dict[str, str]) -> str:
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    if several := alternatives(schema):
        return " | ".join(dict.fromkeys(_type(each, parts) for each in several))
    kind = schema.get("type")
    if kind == "array":
        items = _type(schema.get("items", {}), parts)
        return f"({items})[]" if "|" in items else f"{items}[]"
    if kind == "object":
        return _object(schema, parts)
    return _TYPES.get(str(kind), "unknown")


def _object(schema: Schema, parts: dict[str, str]) -> str:
    if "properties" in schema:
        name = class_name(schema["title"])
        if name not in parts:
            parts[name] = _interface(name, schema, parts)
        return name
    return f"Record<string, {_type(of_values(schema), parts)}>"

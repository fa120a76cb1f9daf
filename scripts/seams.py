"""What of vLLM Heed stands on, name by name, and whether another vLLM still has it.

    python scripts/seams.py                     the installed vLLM against what was written down
    python scripts/seams.py --vllm FOLDER       another one, as in an unpacked wheel; nothing is imported
    python scripts/seams.py --write             write down the installed one, when Heed was adapted to it

Read off the source of both: names that Heed imports, attributes that it takes of these, and methods that its
subclasses override, with their parameters and a digest of their code. Prints what differs, by Heed's file.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEED = ROOT / "server" / "heed_server"
WRITTEN = Path(__file__).with_name("seams.json")

Seams = dict[str, dict[str, str]]
"""By Heed's file: `module:name` of vLLM's, and what is known of it."""
Function = ast.FunctionDef | ast.AsyncFunctionDef
GONE = "gone"
PLACED = {
    "heed_server.engine.running.runner_v1:EditsInRunner": "vllm.v1.worker.gpu_model_runner:GPUModelRunner",
    "heed_server.engine.running.runner_v2:EditsInRunner": "vllm.v1.worker.gpu.model_runner:GPUModelRunner",
    "heed_server.engine.running.runner_v2:EditsInModelState": (
        "vllm.v1.worker.gpu.model_states.interface:ModelState"
    ),
}
"""Mixins that are put before a class of vLLM's at run time, and that class."""


@dataclass
class HeedFile:
    """One of Heed's.

    imports: what local names stand for, `module:name`, vLLM's. own: the same of Heed's, and its own classes.
    """

    path: Path
    module: str
    tree: ast.Module
    imports: dict[str, str] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)


Classes = Mapping[str, tuple[HeedFile, ast.ClassDef]]
"""Heed's, by `module:name`."""


class Vllm:
    """The source of one vLLM. folder: the package's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = cache(self._module)

    def _module(self, name: str) -> ast.Module | None:
        path = self.folder.joinpath(*name.split(".")[1:])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
        return None

    def find(self, module: str, name: str, depth: int = 8) -> tuple[str, ast.AST] | None:
        """Where a name of a module is defined, through imports inside of vLLM, and its definition."""
        tree = self.module(module)
        if tree is None or not depth:
            return None
        for node in _statements(tree):
            if isinstance(node, ast.ClassDef | Function) and node.name == name:
                return module, node
            if isinstance(node, ast.ImportFrom):
                source = _absolute(node, module, is_package=self._is_package(module))
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        inside = source.split(".")[0] == "vllm"
                        return (
                            self.find(source, alias.name, depth - 1) if inside else (module, node)
                        )
                    everything = self.find(source, name, depth - 1) if alias.name == "*" else None
                    if everything is not None:
                        return everything
            if name in _assigned(node):
                return module, node
        # `vllm.envs` makes its names when they are asked for.
        if any(isinstance(node, Function) and node.name == "__getattr__" for node in tree.body):
            return (module, tree) if f'"{name}"' in ast.unparse(tree).replace("'", '"') else None
        return (module, tree) if self.module(f"{module}.{name}") is not None else None

    def member(self, module: str, owner: ast.ClassDef, name: str) -> ast.AST | None:
        """A class's own or inherited attribute, as far as its bases are vLLM's."""
        for node in owner.body:
            if (isinstance(node, Function) and node.name == name) or name in _assigned(node):
                return node
        for base in owner.bases:
            found = self.find(module, ast.unparse(base).partition("[")[0])
            if found is not None and isinstance(found[1], ast.ClassDef):
                member = self.member(found[0], found[1], name)
                if member is not None:
                    return member
        return None

    def _is_package(self, module: str) -> bool:
        return self.folder.joinpath(*module.split(".")[1:], "__init__.py").is_file()


def seams(vllm: Vllm) -> Seams:
    """Every seam, as this vLLM has it."""
    files = [_read(path) for path in sorted(HEED.rglob("*.py"))]
    classes = {
        f"{file.module}:{node.name}": (file, node)
        for file in files
        for node in ast.walk(file.tree)
        if isinstance(node, ast.ClassDef)
    }
    found: Seams = {}
    for file in files:
        known = {
            target: _describe(vllm, target)
            for target in [*file.imports.values(), *_attributes(file)]
        }
        for node in ast.walk(file.tree):
            if isinstance(node, ast.ClassDef):
                known |= _overridden(vllm, file, node, classes)
        if known:
            found[file.path.relative_to(ROOT).as_posix()] = dict(sorted(known.items()))
    return found


def differences(then: Seams, now: Seams) -> Iterator[str]:
    """One line for each seam that is not what it was."""
    for file in sorted({*then, *now}):
        before, after = then.get(file, {}), now.get(file, {})
        for target in sorted({*before, *after}):
            old, new = before.get(target), after.get(target)
            if old == new:
                continue
            if old is None or new is None:
                what = "Heed uses it anew" if old is None else "Heed uses it no more"
            elif new == GONE:
                what = "gone"
            elif old.rpartition(" ")[0] != new.rpartition(" ")[0]:
                what = f"{old.rpartition(' ')[0]} became {new.rpartition(' ')[0]}"
            else:
                what = "other code"
            yield f"{file}: {target}: {what}"


def _read(path: Path) -> HeedFile:
    module = ".".join(path.relative_to(HEED.parent).with_suffix("").parts)
    file = HeedFile(path, module, ast.parse(path.read_text(encoding="utf-8")))
    for node in ast.walk(file.tree):
        if isinstance(node, ast.ClassDef):
            file.own[node.name] = f"{module}:{node.name}"
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            package = node.module.split(".")[0]
            names = {
                alias.asname or alias.name: f"{node.module}:{alias.name}" for alias in node.names
            }
            if package == "vllm":
                file.imports |= names
            elif package == "heed_server":
                file.own |= names
    return file


def _attributes(file: HeedFile) -> Iterator[str]:
    """What is taken of imported names: `module:name.attribute`."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            target = file.imports.get(node.value.id)
            if target is not None:
                yield f"{target}.{node.attr}"


def _overridden(vllm: Vllm, file: HeedFile, node: ast.ClassDef, classes: Classes) -> dict[str, str]:
    """The methods of vLLM's base classes that a class and Heed's mixins before them override."""
    found = {}
    targets = [PLACED.get(f"{file.module}:{node.name}")]
    for base in node.bases:
        head, _, tail = ast.unparse(base).partition(".")
        imported = file.imports.get(head)
        targets.append(f"{imported}.{tail}" if imported and tail else imported)
    for target in filter(None, targets):
        for method in set(_methods(file, node, classes)):
            described = _describe(vllm, f"{target}.{method}")
            # A method that the base has not is Heed's own.
            if described != GONE:
                found[f"{target}.{method}"] = described
    return found


def _methods(file: HeedFile, node: ast.ClassDef, classes: Classes) -> Iterator[str]:
    yield from (each.name for each in node.body if isinstance(each, Function))
    for base in node.bases:
        mixin = classes.get(file.own.get(ast.unparse(base), ""))
        if mixin is not None:
            yield from _methods(*mixin, classes)


def _describe(vllm: Vllm, target: str) -> str:
    """Kind, parameters and a digest of the code of `module:name.attribute`; `GONE` where it is not."""
    module, _, names = target.partition(":")
    first, *rest = names.split(".")
    found = vllm.find(module, first)
    for name in rest:
        if found is None:
            break
        where, node = found
        if isinstance(node, ast.ClassDef):
            member = vllm.member(where, node, name)
            found = None if member is None else (where, member)
        elif isinstance(node, ast.Module):
            inner = f"{where}.{first}"
            found = vllm.find(inner if vllm.module(inner) is not None else where, name)
        else:
            return "value"  # an instance, whose attributes the source does not show
    if found is None:
        return GONE
    node = found[1]
    if isinstance(node, Function):
        return f"({ast.unparse(node.args)}) {_digest(node)}"
    return "class" if isinstance(node, ast.ClassDef) else "value"


def _digest(node: Function) -> str:
    body = node.body
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        body = body[1:]
    return hashlib.sha256("\n".join(map(ast.dump, body)).encode()).hexdigest()[:12]


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Top-level statements, those under `if` and `try` included."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, ast.If | ast.Try):
            waiting += (
                node.body + node.orelse + [s for h in getattr(node, "handlers", []) for s in h.body]
            )


def _assigned(node: ast.AST) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def installed() -> Path:
    """The folder of the installed vLLM, which is not imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("heed: no vLLM is installed")
    return Path(next(iter(spec.submodule_search_locations)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare a vLLM with what Heed stands on.")
    parser.add_argument(
        "--vllm", type=Path, metavar="FOLDER", help="a folder `vllm` of another one"
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = seams(Vllm(options.vllm or installed()))
    if options.write:
        WRITTEN.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    lines = list(differences(json.loads(WRITTEN.read_text()), found))
    print("\n".join(lines) or "every seam is what it was")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

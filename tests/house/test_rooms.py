"""The arrows between the packages: who imports whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEVER = {
    "interventions": {"fastapi", "heed_server", "numba", "starlette", "torch", "triton", "vllm"},
    "kernels": {"fastapi", "heed_interventions", "heed_server", "pydantic", "starlette", "vllm"},
}
TOUCHES_VLLM = ("engine/", "api/", "attention/", "launcher.py", "offline.py")


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", NEVER)
def test_a_room_imports_nothing_from_above(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        wrong = {name for name in imported(path) if name.partition(".")[0] in NEVER[room]}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_only_these_places_touch_vllm() -> None:
    server = ROOT / "server" / "heed_server"
    for path in server.rglob("*.py"):
        names = {name for name in imported(path) if name.partition(".")[0] == "vllm"}
        place = path.relative_to(server).as_posix()
        if not place.startswith(TOUCHES_VLLM):
            assert names <= {"vllm.logger"}, f"{place} imports {sorted(names)}"


def test_methods_are_read_without_loading_torch() -> None:
    code = "import heed_interventions.registry, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

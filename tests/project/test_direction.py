"""The house has one direction: a package imports from those below it only, and no two modules import each other."""

from __future__ import annotations

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fastpower"

#: floors from the ground up; a room may import from lower floors, and from its own wing
FLOORS = [
    ["errors", "suggestions", "moved", "terminal", "native", "arrays"],
    ["potential"],
    ["target"],
    ["interfaces"],
    ["kernels"],
    ["random", "models"],
    ["chains"],
    ["decoders", "samplers"],
    ["scheduler", "language_model"],
    ["results", "progress"],
    ["generation"],
    ["measure", "evaluate"],
    ["potentials"],
    ["integrations"],
    ["commands"],
    ["cli"],
    ["__init__", "__main__"],  # the face, which imports on first use
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The wing or loose file at the root that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(path: Path, *, deferred: bool) -> set[str]:
    """Modules of the package that a file imports, under TYPE_CHECKING too; in functions only if ``deferred``."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not deferred:
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names if alias.name in MODULES and "." in alias.name)
            elif isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "fastpower":
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    found.add(whole if whole in MODULES else str(child.module))
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found - {"fastpower"}  # its version, its extension and what it makes available on first use


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} <= set(FLOOR)


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) != "__init__"])
def test_a_module_imports_from_floors_below_only(module):
    mine = room(module)
    upward = {
        name
        for name in imported(MODULES[module], deferred=True)
        if room(name) != mine and FLOOR[room(name)] >= FLOOR[mine]
    }
    assert not upward, f"{module} imports upwards: {sorted(upward)}"


def test_no_modules_import_each_other():
    graph = {module: imported(path, deferred=False) - {module} for module, path in MODULES.items()}
    for module in list(graph):  # what a package's face gathers is below the face, not above its parts
        if MODULES[module].name == "__init__.py":
            for other, names in graph.items():
                if other.startswith(module + ".") and module in names:
                    names.remove(module)
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


def test_the_public_paths_are_there():
    for name in ("fastpower.samplers", "fastpower.decoders.transformers", "fastpower.cuts", "fastpower.kernels"):
        assert importlib.import_module(name)

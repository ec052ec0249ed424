"""Imports point down; each client library has one room; no flow is called without being consumed."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {"errors", "policy", "config", "events"},
    {"core"},
    {"local"},
    {"store"},
    {"flows"},
    {"sql", "workers"},
    {"load", "runner", "loader", "cache"},
]
#: An import that only one room may have.
ROOMS = {"redis": {"store"}, "hiredis": {"store"}, "celery": {"workers"}, "sqlalchemy": {"sql"}, "psycopg": {"testing"}}


def level(room: str) -> int:
    return next(at for at, rooms in enumerate(LAYERS) if room in rooms)


def imports(tree: ast.AST) -> list[str]:
    """What a module needs at run time: imports for type checkers alone do not count."""
    found: list[str] = []
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(ast.walk(node))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            if node.module.startswith("cacheworkers"):
                found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def faults(room: str, source: str) -> list[str]:
    """Name what breaks the layering in one module's source."""
    wrong = []
    for name in imports(ast.parse(source)):
        parts = name.split(".")
        if parts[0] == "cacheworkers" and len(parts) > 1 and room != "testing":
            other = parts[1]
            if other == "testing" or (any(other in rooms for rooms in LAYERS) and level(other) > level(room)):
                wrong.append(f"{room} imports {name}, which is above it")
        elif parts[0] in ROOMS and room not in ROOMS[parts[0]]:
            wrong.append(f"{room} imports {name}; only {ROOMS[parts[0]]} may")
    return wrong


def flow_names() -> set[str]:
    """The names of all flows: functions whose return annotation is Flow[...]."""
    names = set()
    for path in (ROOT / "cacheworkers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns).startswith("Flow["):
                names.add(node.name)
    return names


def lost_flows(source: str, flows: set[str]) -> list[str]:
    """Name the calls of flows that nothing consumes: a statement of their own, or behind a plain yield."""
    lost = []
    for node in ast.walk(ast.parse(source)):
        inner = node.value if isinstance(node, ast.Expr | ast.Yield) else None
        if isinstance(inner, ast.Call):
            name = inner.func.attr if isinstance(inner.func, ast.Attribute) else getattr(inner.func, "id", "")
            is_store_step = isinstance(inner.func, ast.Attribute) and "store" in ast.unparse(inner.func.value)
            if name in flows and not is_store_step:
                lost.append(f"line {node.lineno}: {ast.unparse(inner)[:60]}")
    return lost


def modules() -> list[Path]:
    return sorted((ROOT / "cacheworkers").rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    parts = path.relative_to(ROOT / "cacheworkers").parts
    room = parts[0].removesuffix(".py")

    assert room == "__init__" or faults(room, path.read_text()) == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_flow_is_consumed(path: Path) -> None:
    assert lost_flows(path.read_text(), flow_names()) == []


def test_the_checks_can_fail() -> None:
    assert faults("store", "from cacheworkers.flows.read import read")
    assert faults("core", "import redis")
    assert faults("local", "from cacheworkers import cache")
    assert lost_flows("def f():\n    read(ports)", {"read"})
    assert lost_flows("def f():\n    yield drain(ports)", {"drain"})
    assert not lost_flows("def f():\n    yield from drain(ports)", {"drain"})


def test_the_app_uses_the_public_api_only() -> None:
    public = {"cacheworkers", "cacheworkers.testing.servers"}
    for path in (ROOT / "app").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cacheworkers"):
                assert node.module in public, textwrap.shorten(f"{path.name} imports {node.module}", 120)

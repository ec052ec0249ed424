"""What users see: the names, the async twins, and the types."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import cacheworkers
from cacheworkers import BatchLoader, Cache, Loader, errors

ROOT = Path(__file__).resolve().parents[1]

NAMES = {
    "AsyncLoad",
    "BatchLoader",
    "Cache",
    "Config",
    "Freshness",
    "Explanation",
    "Inspection",
    "WarmJob",
    "WarmUp",
    "Warming",
    "Invalidation",
    "Load",
    "LoadCall",
    "Loader",
    "Policy",
    "Read",
    "TagMapping",
    "tag",
    "__version__",
}
#: An error that no public call raises: what it says reaches users as an event.
INTERNAL_ERRORS = {"EnvelopeError"}
#: Methods that touch no store, or that upkeep, scripts and the command line call: they have no async twin.
SYNC_ONLY = {
    Cache: {
        "loader",
        "batch_loader",
        "close",
        "watch",
        "triggers",
        "drain",
        "drain_until",
        "queues",
        "outbox_backlog",
        "call",
        "hot",
        "warm",
        "calls_of",
        "stored",
        "inspect",
        "store_stats",
        "loader_stats",
        "keep_warm",
        "report_accesses",
        "collect_garbage",
    },
    Loader: {"since"},
    BatchLoader: {"since"},
}
READS = {
    "get",
    "get_many",
    "read",
    "get_json",
    "read_json",
    "peek",
    "warm",
    "hot",
    "revalidate",
    "invalidate",
}
TWINS = {
    Cache: {
        "invalidate",
        "clear",
        "invalidate_loader",
        "explain",
    },
    Loader: READS,
    BatchLoader: READS,
}
PAIRS = [(owner, name) for owner, names in TWINS.items() for name in sorted(names)]


def test_the_package_exports_the_documented_names() -> None:
    """The names users import are these, and every error they may have to catch."""
    raised = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.CacheworkersError)
    }

    assert set(cacheworkers.__all__) == NAMES | (raised - INTERNAL_ERRORS)
    assert all(hasattr(cacheworkers, name) for name in cacheworkers.__all__)


@pytest.mark.parametrize("owner", TWINS, ids=lambda owner: owner.__name__)
def test_every_method_has_a_twin_or_needs_none(owner: type) -> None:
    """No public method is forgotten: it is a pair's sync or async half, or touches no store."""
    methods = {name for name, value in inspect.getmembers(owner, inspect.isfunction) if not name.startswith("_")}

    assert methods == TWINS[owner] | {f"a{name}" for name in TWINS[owner]} | SYNC_ONLY[owner]


@pytest.mark.parametrize(("owner", "name"), PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_the_async_twin_takes_and_returns_the_same(owner: type, name: str) -> None:
    """`aget` is `get` with an `await`: same parameters, same defaults, same result."""
    sync, twin = getattr(owner, name), getattr(owner, f"a{name}")

    assert inspect.iscoroutinefunction(twin)
    assert not inspect.iscoroutinefunction(sync)
    assert inspect.signature(twin) == inspect.signature(sync)


def test_user_code_type_checks() -> None:
    """`tests/typing/` passes `mypy --strict`: values have their types, and each mistake in it is found."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "tests/typing/public.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("owner", TWINS, ids=lambda owner: owner.__name__)
def test_signatures_resolve(owner: type) -> None:
    """Annotations of public methods name real types, so documentation tools and checkers can read them."""
    from cacheworkers import cache as module
    from cacheworkers.sql.watch import service

    # Named for type checkers alone: Celery's, SQLAlchemy's, and what would import them.
    scope: dict[str, Any] = {name: Any for name in ("Celery", "Session", "AsyncSession")}
    scope |= {"AnySession": service.AnySession}
    scope |= {name: list for name in ("sessionmaker", "async_sessionmaker")}

    for name in TWINS[owner]:
        hints = typing.get_type_hints(
            getattr(owner, name), {**vars(module), **vars(sys.modules[owner.__module__]), **scope}
        )
        assert "return" in hints

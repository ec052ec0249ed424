"""The names users rely on, and sync/async parity."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import cacheworkers
from cacheworkers import BatchLoader, Cache, Loader

READS = {"get", "read", "get_json", "peek", "revalidate", "invalidate"}
FACES = {Loader: READS, BatchLoader: READS | {"get_many"}, Cache: {"invalidate", "sweep"}}


def test_every_public_name_is_there() -> None:
    assert all(hasattr(cacheworkers, name) for name in cacheworkers.__all__)
    assert {"Cache", "Config", "Load", "Policy"} <= set(cacheworkers.__all__)


@pytest.mark.parametrize(("face", "name"), [(face, name) for face, names in FACES.items() for name in sorted(names)])
def test_async_twin_has_the_same_signature(face: Any, name: str) -> None:
    sync, twin = getattr(face, name), getattr(face, f"a{name}")

    assert inspect.iscoroutinefunction(twin)
    assert inspect.signature(sync) == inspect.signature(twin)


@pytest.mark.parametrize("face", FACES)
def test_no_async_method_is_without_its_sync_twin(face: Any) -> None:
    for name, _ in inspect.getmembers(face, inspect.iscoroutinefunction):
        if not name.startswith("_"):
            assert hasattr(face, name[1:]), name

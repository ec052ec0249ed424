"""Doctor finds two applications in one namespace, and values that have no place in the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Load
from cacheworkers.events import NamespaceShared
from cacheworkers.ops.doctor.namespace_checks import check_namespace, check_unstored
from cacheworkers.testing.servers import wait_until


def application(make_cache: Callable[..., Cache], path: Path, name: str, **settings: Any) -> Any:
    cache = make_cache(sessions=sessionmaker(create_engine(f"sqlite:///{path}/{name}.db")), **settings)

    @cache.loader(fresh_for=300)
    def product(load: Load, n: int) -> int:
        if n < 0:
            load.tag("")
        return n

    return cache, product


def levels(check: Any, cache: Cache) -> list[tuple[str, str]]:
    return [(finding.level, finding.what) for finding in check(cache.internals.runtime)]


def test_two_databases_under_one_namespace_are_found(
    make_cache: Callable[..., Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the other application is another process, which has loaded something within a week."""
    production, product = application(make_cache, tmp_path, "production")
    assert product.get(1) == 1
    assert [level for level, _ in levels(check_namespace, production)] == ["ok"]
    staging, _ = application(make_cache, tmp_path, "staging")
    monkeypatch.setattr(type(staging._runtime), "siblings", [])

    [(level, what)] = levels(check_namespace, staging)

    assert level == "warning" and "production.db" in what and "staging.db" in what


def test_two_caches_of_one_process_are_found_before_anything_is_loaded(
    make_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    application(make_cache, tmp_path, "production")
    staging, _ = application(make_cache, tmp_path, "staging")

    assert [level for level, _ in levels(check_namespace, staging)] == ["warning"]


def test_several_processes_of_one_application_are_well(make_cache: Callable[..., Cache], tmp_path: Path) -> None:
    caches = [application(make_cache, tmp_path, "production") for _ in range(2)]
    for _, product in caches:
        product.get(1)

    assert [level for cache, _ in caches for level, _ in levels(check_namespace, cache)] == ["ok", "ok"]


def test_a_process_that_meets_another_database_says_so(
    make_cache: Callable[..., Cache], events: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and also where it only reads what the other has loaded; not before there is another, nor if it is meant."""
    production, product = application(make_cache, tmp_path, "production")
    product.get(1)
    wait_until(lambda: production._ports.store.databases().run())
    staging, product = application(make_cache, tmp_path, "staging")
    assert product.get(1) == 1

    wait_until(lambda: any(type(event) is NamespaceShared for event in events))
    staging._runtime.database_mark.note()
    meant, product = application(make_cache, tmp_path, "meant", allow_shared_namespace=True)
    product.get(1)
    wait_until(lambda: len(meant._ports.store.databases().run()) == 3)

    [event] = [event for event in events if type(event) is NamespaceShared]
    assert event.database.endswith("staging.db") and [other[-13:] for other in event.others] == ["production.db"]
    wait_until(lambda: "allow_shared_namespace=True" in caplog.text)
    assert caplog.text.count("serve each other's values") == 1
    assert [level for level, _ in levels(check_namespace, meant)] == ["ok"]


def test_values_without_a_place_in_the_store_are_found(make_cache: Callable[..., Cache], tmp_path: Path) -> None:
    cache, product = application(make_cache, tmp_path, "production")
    assert [level for level, _ in levels(check_unstored, cache)] == ["ok"]
    assert product.get(-1) == -1

    wait_until(lambda: levels(check_unstored, cache)[0][0] != "ok")  # it is noted after the value is served
    [(level, what)] = levels(check_unstored, cache)

    assert level == "warning" and "product is served uncached: product[-1]" in what and "not empty" in what

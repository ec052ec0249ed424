"""Doctor finds two applications in one namespace, and values that have no place in the store."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery
from sqlalchemy import create_engine, create_mock_engine, make_url
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker

from cacheworkers import Cache, Config, Load, LoadError, NamespaceTaken
from cacheworkers.events import NamespaceShared
from cacheworkers.ops.doctor.namespace_checks import check_failures, check_namespace, check_unstored
from cacheworkers.runtime import namespace_marks
from cacheworkers.runtime.namespace_marks import (
    FORGOTTEN_AFTER,
    LAPSES_AFTER,
    LIVES_FOR,
    NamespaceMarks,
    _address,
    conflicts,
    other_application,
)
from cacheworkers.testing.servers import Valkey, wait_until


class Row(DeclarativeBase):
    __abstract__ = True


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
    """Also where the other application is another process, which has connected within a quarter of an hour."""
    production, product = application(make_cache, tmp_path, "production")
    assert product.get(1) == 1
    assert [level for level, _ in levels(check_namespace, production)] == ["ok"]
    wait_until(production._runtime.ports.store.marks().run)  # a thread notes them
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
    wait_until(lambda: production._ports.store.marks().run())
    staging, product = application(make_cache, tmp_path, "staging")
    assert product.get(1) == 1

    wait_until(lambda: any(type(event) is NamespaceShared for event in events))
    staging._runtime.marks.note()
    meant, product = application(make_cache, tmp_path, "meant", allow_shared_namespace=True)
    product.get(1)
    wait_until(lambda: any("meant.db" in mark for mark in meant._ports.store.marks().run()))

    [event] = [event for event in events if type(event) is NamespaceShared]
    assert event.mark.endswith("staging.db") and [other[-13:] for other in event.others] == ["production.db"]
    wait_until(lambda: "allow_shared_namespace=True" in caplog.text)
    assert caplog.text.count("serve each other's values") == 1
    assert [level for level, _ in levels(check_namespace, meant)] == ["ok"]


def test_two_modules_that_declare_a_loader_of_one_name_are_found(
    make_cache: Callable[..., Cache], events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two applications on one database, or with none that is known; what others have in common is not.

    The one that was first learns it when it next renews its marks.
    """
    shop, blog = make_cache(), make_cache()
    products = []
    for cache, module in ((shop, "shop.loaders"), (blog, "blog.loaders")):
        products.append(cache.loader(fresh_for=60, name="product")(declared_in(module)))
        cache.loader(fresh_for=60, name=f"{module[:4]}_page")(declared_in(module))
    assert products[0].get(1) == 1
    wait_until(lambda: shop._ports.store.marks().run())
    assert products[1].get(1) == 1

    wait_until(lambda: any(type(event) is NamespaceShared for event in events))
    monkeypatch.setattr(type(blog._runtime), "siblings", [])
    [(level, what)] = levels(check_namespace, blog)

    [event] = [event for event in events if type(event) is NamespaceShared]
    assert (event.mark, event.others) == ("loader product of blog.loaders", ("loader product of shop.loaders",))
    assert level == "warning" and "product of blog.loaders" in what and "product of shop.loaders" in what
    shop._runtime.marks._noted_at = 0.0
    shop._runtime.marks.note()
    shop._runtime.marks.note()
    [_, event] = [event for event in events if type(event) is NamespaceShared]
    assert (event.mark, event.others) == ("loader product of shop.loaders", ("loader product of blog.loaders",))


def declared_in(module: str) -> Any:
    def load(load: Load, n: int) -> int:
        return n

    load.__module__ = module
    return load


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ("loader product of shop.loaders", "loader product of loaders"),
        ("loader product of loaders", "loader product of src.shop.loaders"),
        ("loader product of shop.loaders", "loader price of shop.prices"),
        ("loader product of shop.loaders", "database postgresql://db/shop"),
        ("database postgresql://db/shop", "loader product of shop.loaders"),
    ],
)
def test_what_programs_of_one_product_may_differ_in_is_no_conflict(own: str, theirs: str) -> None:
    """Web, workers and scripts import one module from different directories, or declare different loaders."""
    assert conflicts([own], {own: time.time(), theirs: time.time()}) == {}


SHOP = ["loader product of shop.loaders", "module shop.loaders with postgresql://db/shop"]
BLOG = ["loader product of blog.loaders", "module blog.loaders with postgresql://db/blog"]


@pytest.mark.parametrize(
    ("noted", "is_refused"),
    {
        "another application": (BLOG, True),
        "the same one": (SHOP, False),
        "a module was renamed": ([BLOG[0], "module blog.loaders with postgresql://db/shop"], False),
        "a database was moved": ([SHOP[0], "module shop.loaders with postgresql://new/shop"], False),
        "both, and workers with old module and database run": (
            [*BLOG, "module blog.loaders with postgresql://db/shop"],
            False,
        ),
        "both, and workers with the new module and the old database run": (
            [*BLOG, "module shop.loaders with postgresql://db/blog"],
            False,
        ),
        "linked by a third process": (
            [*BLOG, "module blog.loaders with mysql://a/b", "module shop.loaders with mysql://a/b"],
            False,
        ),
        "it has no database, or says that sharing is meant": (BLOG[:1], False),
        "no loader of the same name": (["loader post of blog.loaders", BLOG[1]], False),
        "the same module, imported from another directory": (
            ["loader product of src.shop.loaders", "module src.shop.loaders with postgresql://db/blog"],
            False,
        ),
    }.values(),
)
def test_two_applications_share_neither_a_module_nor_a_database(noted: list[str], is_refused: bool) -> None:
    """Each fact alone, and both where another process links them, is what healthy deployments show."""
    now = time.time()

    assert (other_application(SHOP, dict.fromkeys([*noted, *SHOP], now)) is not None) is is_refused
    assert other_application(SHOP, dict.fromkeys(noted, now - LIVES_FOR - 1)) is None


def test_two_applications_in_one_process_are_no_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who puts both into one process knows of both."""
    monkeypatch.setattr(namespace_marks, "_noted_here", {BLOG[1]})

    assert other_application(SHOP, dict.fromkeys(BLOG, time.time())) is None


def test_a_process_is_refused_while_another_application_runs(
    make_cache: Callable[..., Cache], events: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads for itself, and uses the store once the other has ended; who says that it is meant is not refused."""
    cache, product = application(make_cache, tmp_path, "shop")
    marks, store = cache._runtime.marks, make_cache()._ports.store
    store.note_marks(BLOG, time.time()).run()

    assert product.get(1) == 1
    with pytest.raises(NamespaceTaken, match=r"product of blog\.loaders"):
        product.revalidate(1)
    with pytest.raises(NamespaceTaken):  # for some seconds the store is not asked again
        marks.question()
    assert asyncio.run(product.aget(1)) == 1
    assert [event.others for event in events if type(event) is NamespaceShared]
    assert [level for level, _ in levels(check_namespace, cache)] == ["error"]
    assert store.get("product[1]").run() is None and not set(store.marks().run()) & set(marks.own())
    _, product = application(make_cache, tmp_path, "shop", allow_shared_namespace=True)
    assert product.revalidate(1)

    store.note_marks(BLOG, time.time() - LIVES_FOR - 1).run()
    monkeypatch.setattr(marks, "_refused_until", 0.0)
    cache.invalidate("products")

    assert [level for level, _ in levels(check_namespace, cache)] == ["warning"]


def test_what_only_reads_is_no_second_application(make_cache: Callable[..., Cache], tmp_path: Path) -> None:
    """A service with a database and a module of its own, whose loaders' values are loaded by another one's workers."""
    cache = make_cache(sessions=sessionmaker(create_engine(f"sqlite:///{tmp_path}/search.db")))
    product = cache.loader(fresh_for=60, name="product", on_timeout="raise")(declared_in("search.readers"))
    make_cache()._ports.store.note_marks(BLOG, time.time()).run()

    assert product.peek(1) is None


def test_marks_that_nobody_renews_are_deleted(make_cache: Callable[..., Cache], tmp_path: Path) -> None:
    cache, _ = application(make_cache, tmp_path, "shop")
    cache._ports.store.note_marks(["database of last year"], time.time() - FORGOTTEN_AFTER - 1).run()

    for _ in range(2):
        cache._runtime.marks._noted_at = 0.0
        cache._runtime.marks.note()

    assert "database of last year" not in cache._ports.store.marks().run()


@pytest.mark.parametrize(
    ("file", "own"), [(None, []), ("/srv/shop.py", ["loader product of shop"])], ids=["notebook", "script"]
)
def test_a_script_is_the_module_that_a_worker_imports_and_a_notebook_contradicts_nobody(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, file: str | None, own: list[str]
) -> None:
    main = types.ModuleType("__main__")
    if file is not None:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)
    cache = make_cache()
    cache.loader(fresh_for=60, name="product")(declared_in("__main__"))

    assert cache._runtime.marks.own() == own


SCRIPT = """
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from cacheworkers import Cache, Config, Load

cache = Cache(Config(redis_url={url!r}, namespace={namespace!r}), sessions=sessionmaker(create_engine("sqlite:///{db}")))

@cache.loader(fresh_for=300)
def thing(load: Load, n: int) -> str:
    return "{db}"

if __name__ == "__main__":
    print(thing.get(1))
    print(cache.stored("thing[1]"))
    cache.internals.runtime.marks.note()
    cache.close()
"""


def test_two_scripts_are_two_applications_and_one_is_itself_however_it_is_started(
    valkey: Valkey, tmp_path: Path
) -> None:
    """Both have their loaders in `__main__`."""
    for name in ("one", "two"):
        text = SCRIPT.format(url=valkey.url, db=f"{name}.db", namespace=f"scripts{os.getpid()}")
        (tmp_path / f"{name}.py").write_text(text)

    def run(*words: str) -> tuple[list[str], str]:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
        return done.stdout.split(), done.stderr

    imported = "import one; print(one.thing.get(1)); print(one.cache.stored('thing[1]'))"
    for words in (("one.py",), ("-m", "one"), ("-c", imported)):
        assert run(*words) == (["one.db", "b'\"one.db\"'"], "")
    said, errors = run("two.py")
    assert said == ["two.db"] and "NamespaceTaken" in errors and "it has the loader thing of one with" in errors


def test_a_mark_that_nobody_renews_lapses(make_cache: Callable[..., Cache], tmp_path: Path) -> None:
    """A database that has moved is found while both are in use, and not when the last old process has ended."""
    moved, _ = application(make_cache, tmp_path, "new")
    [old] = [f"database sqlite:///{tmp_path}/old.db"]
    moved._ports.store.note_marks([old], time.time() - LAPSES_AFTER + 60).run()
    assert levels(check_namespace, moved)[0][0] == "warning"

    moved._ports.store.note_marks([old], time.time() - LAPSES_AFTER - 1).run()

    assert levels(check_namespace, moved)[0][0] == "ok"


def test_a_process_renews_its_marks(make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(access_report_interval=0.01)
    product = cache.loader(fresh_for=60, name="product")(declared_in("shop.loaders"))
    product.get(1)
    wait_until(lambda: cache._ports.store.marks().run())
    [first] = cache._ports.store.marks().run().values()

    monkeypatch.setattr(namespace_marks, "RENEWED_EVERY", 0.0)

    wait_until(lambda: [first] < [*cache._ports.store.marks().run().values()])


@pytest.mark.parametrize("different", ["binds", "schema_translate_map", "options"])
def test_databases_are_told_apart(make_cache: Callable[..., Cache], different: str) -> None:
    """By all that a session is bound to, and by the schema where an engine sets one; passwords are not noted."""
    url = "postgresql+psycopg://user:secret@db:5432/shop"
    factories = {
        "binds": [sessionmaker(binds={Row: create_engine(f"{url}{n}")}) for n in range(2)],
        "schema_translate_map": [
            sessionmaker(create_engine(url, execution_options={"schema_translate_map": {None: name}}))
            for name in ("production", "staging")
        ],
        "options": [
            sessionmaker(create_engine(f"{url}?options=-csearch_path%3D{name}")) for name in ("production", "staging")
        ],
    }[different]

    one, two = (make_cache(sessions=factory)._runtime.marks.databases for factory in factories)

    assert one and two and one != two and "secret" not in "".join(one + two)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("postgresql+psycopg://a:1@localhost/shop", "postgresql+asyncpg://b:2@127.0.0.1:5432/shop"),
        ("postgresql+psycopg:///shop?host=/run/postgresql", "postgresql+psycopg://localhost/shop"),
        ("postgresql+psycopg://DB.internal/shop", "postgresql+psycopg://db.internal:5432/shop"),
        ("mysql+pymysql://db/shop", "mariadb+pymysql://db:3306/shop"),
        ("sqlite:///shop.db", "sqlite:///./shop.db"),
    ],
)
def test_one_database_is_known_however_its_url_is_written(one: str, other: str) -> None:
    assert _address(engine_of(one)) == _address(engine_of(other))


def test_a_socket_of_its_own_is_a_server_of_its_own() -> None:
    """Two that were started from wheels have one database name each; what doctor shows can be connected to."""
    one, other = (_address(engine_of(f"postgresql+psycopg://u:secret@/shop?host=/tmp/cwpg-{n}")) for n in "ab")

    assert (one, other) == ("postgresql:///tmp/cwpg-a/shop", "postgresql:///tmp/cwpg-b/shop")


def test_files_of_one_name_in_two_directories_are_two_databases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for name in ("shop", "staging"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        found.add(_address(engine_of("sqlite:///shop.db")))

    assert len(found) == 2


def engine_of(url: str) -> Any:
    return SimpleNamespace(url=make_url(url), get_execution_options=dict)


def test_values_without_a_place_in_the_store_are_found(make_cache: Callable[..., Cache], tmp_path: Path) -> None:
    cache, product = application(make_cache, tmp_path, "production")
    assert [level for level, _ in levels(check_unstored, cache)] == ["ok"]
    assert product.get(-1) == -1

    wait_until(lambda: levels(check_unstored, cache)[0][0] != "ok")  # it is noted after the value is served
    [(level, what)] = levels(check_unstored, cache)

    assert level == "warning" and "product is served uncached: product[-1]" in what and "non-empty" in what


def test_failed_loads_are_found_by_loader(make_cache: Callable[..., Cache]) -> None:
    """With the first line of why; a key that a batch loader left out is an answer."""
    cache = make_cache()

    @cache.loader(fresh_for=300)
    def product(load: Load, n: int) -> int:
        raise RuntimeError("relation does not exist\n[SQL: SELECT\n1]")

    @cache.batch_loader(fresh_for=300)
    def products(load: Load, keys: list[int]) -> dict[int, int]:
        return {}

    assert [level for level, _ in levels(check_failures, cache)] == ["ok"]
    for read in (product, products):
        with pytest.raises(LoadError):
            read.get(1)

    [(level, what)] = levels(check_failures, cache)

    assert (level, what) == (
        "warning",
        "1 call of product failed, product[1] with RuntimeError: relation does not exist",
    )


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize(("prefix", "expected"), [("", "-A late worker -I pages"), ("other.", "-A worker_app worker")])
def test_the_command_of_a_worker_is_that_of_the_one_seen_last(
    make_cache: Callable[..., Cache], asks: bool, prefix: str, expected: str
) -> None:
    """A log line takes what was there when this process has noted itself; a command asks the store."""
    app = Celery("worker_app", set_as_current=False)
    cache = make_cache(celery=app, queue_prefix=prefix)
    marks, store = cache.internals.runtime.marks, cache.internals.runtime.ports.store
    store.note_marks(["worker -A early"], 1.0e9).run()
    store.note_marks(["worker -A late -I pages"], 1.1e9).run()
    store.note_marks(["worker -A late; reboot", "worker --help"], 1.2e9).run()  # forged: somebody would paste it
    if not asks:
        marks.declare("product", "worker_app", loads_here=False)
        marks.note()

    assert marks.worker_command(app, ["q"], asks=asks) == f"celery {expected} -Q q"


@pytest.mark.parametrize(("is_bound", "expected"), [(True, "-A worker_app worker -I pages"), (False, "-A x worker")])
def test_the_module_of_a_command_line_starts_workers_where_it_binds_the_sessions(
    make_cache: Callable[..., Cache], tmp_path: Path, is_bound: bool, expected: str
) -> None:
    """Elsewhere what it takes is known better from the app itself: the given module need not import all loaders."""
    app = Celery("worker_app", set_as_current=False)
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db") if is_bound else None
    cache = make_cache(celery=app, sessions=sessionmaker(engine))
    marks = cache.internals.runtime.marks
    marks.declare("product", "pages", loads_here=False)
    marks.given = "-A x"

    assert marks.worker_command(app, ["q"], asks=True) == f"celery {expected} -Q q"


@pytest.mark.parametrize(("prefix", "is_left"), [("", True), ("other.", False)])
def test_a_worker_of_another_queue_prefix_leaves_no_command(
    make_cache: Callable[..., Cache], tmp_path: Path, prefix: str, is_left: bool
) -> None:
    """It is of another application, whose processes without a prefix would print it."""
    cache, _ = application(make_cache, tmp_path, "shop", queue_prefix=prefix)

    cache.internals.runtime.marks.note_as_worker("-A shop")

    assert ("worker -A shop" in cache._ports.store.marks().run()) is is_left


class Routed(Session):
    def get_bind(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a session that needs a request")


@pytest.mark.parametrize(
    ("sessions", "is_unbound"),
    [
        (None, False),
        (sessionmaker(), True),
        (async_sessionmaker(), True),
        (sessionmaker(create_engine("sqlite://")), False),
        (sessionmaker(binds={Row: create_engine("sqlite://")}), False),
        (sessionmaker(class_=Routed), False),
        (async_sessionmaker(sync_session_class=Routed), False),
        (scoped_session(sessionmaker()), False),  # not known
        (sessionmaker(create_mock_engine("postgresql://", lambda *_: None)), True),  # it connects to nothing
    ],
)
def test_sessions_are_unbound(sessions: Any, is_unbound: bool) -> None:
    marks = NamespaceMarks(Config(), cast(Any, None), lambda event: None, sessions)

    assert marks.is_unbound is is_unbound

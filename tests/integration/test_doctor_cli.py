"""`cacheworkers doctor`: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import own_command
import pytest
import redis

from cacheworkers import Cache, Config
from cacheworkers.ops.doctor.store_checks import check_beat
from cacheworkers.testing import Valkey

MODULE = """
from cacheworkers import Cache, Config
cache = Cache(Config.from_env())
"""
AWAY = """
from cacheworkers import Cache, Config
from sqlalchemy import MetaData, Table, create_engine
from sqlalchemy.orm import sessionmaker
cache = Cache(Config.from_env())
sessions = sessionmaker(create_engine("postgresql+psycopg://127.0.0.1:1/shop"))
cache.watch(sessions, {Table("product", MetaData()): lambda row: ()})
"""
LOADER = "loader product of shop.catalog"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store() -> Iterator[Valkey]:
    with Valkey(maxmemory="100mb", maxmemory_policy="volatile-lru") as server:
        yield server


@pytest.fixture
def cli(tmp_path: Path, store: Valkey) -> Run:
    def run(
        *words: str, module: str = MODULE, first: tuple[str, ...] = (), app: str = "shop:cache"
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "shop.py").write_text(module)
        env = {**os.environ, "REDIS_URL": store.url}
        return own_command.run(["--app", app, *first, "doctor", *words], cwd=tmp_path, env=env)

    return run


def set_policy(store: Valkey, policy: str) -> None:
    with redis.Redis.from_url(store.url) as client:
        client.config_set("maxmemory-policy", policy)


def test_notes_are_no_failure(cli: Run) -> None:
    """Status 0; notes say why and how, what is ok does not."""
    done = cli()

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    notes = {line.split()[1]: lines[at + 1 : at + 3] for at, line in enumerate(lines) if line.startswith("note ")}
    assert set(notes) == {"persistence-none", "output-buffer"}
    assert all(why.strip().startswith("why  ") and fix.strip().startswith("fix  ") for why, fix in notes.values())
    assert [line for line in lines[3 * len(notes) :] if not line.startswith("ok ")] == []


def test_a_warning_ends_with_one(cli: Run, store: Valkey) -> None:
    with redis.Redis.from_url(store.url) as client:
        client.config_set("maxmemory", 0)

    done = cli()

    assert done.returncode == 1
    assert done.stdout.startswith("warning  maxmemory ")


@pytest.mark.parametrize(("words", "first"), [(("--json",), ()), ((), ("--json",))])
def test_an_error_ends_with_two_and_json_says_the_same(
    cli: Run, store: Valkey, words: tuple[str, ...], first: tuple[str, ...]
) -> None:
    set_policy(store, "allkeys-lru")

    done = cli(*words, first=first)

    assert done.returncode == 2
    findings = json.loads(done.stdout)
    assert [set(finding) for finding in findings] == [{"check", "level", "what", "why", "fix"}] * len(findings)
    assert (findings[0]["check"], findings[0]["level"]) == ("eviction-policy", "error")
    assert {finding["level"] for finding in findings} == {"error", "note", "ok"}


def test_what_is_away_is_a_finding_and_no_traceback(cli: Run, store: Valkey) -> None:
    store.kill()

    done = cli(module=AWAY)

    assert done.returncode == 2
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("error")] == [
        "store-away",
        "database-away",
    ]
    assert "Traceback" not in done.stdout + done.stderr


def test_before_the_start_nobody_misses_workers(cli: Run) -> None:
    module = """
import os
from celery import Celery
from cacheworkers import Cache, Config
cache = Cache(Config.from_env(), celery=Celery("shop", broker=os.environ["REDIS_URL"]))
cache.loader(name="one")(lambda load: 1)
"""

    before, after = cli("--before-start", module=module), cli(module=module)

    assert (before.returncode, after.returncode) == (0, 1), before.stdout
    assert "queue-unserved" not in before.stdout and after.stdout.count("warning  queue-unserved") == 4
    fix = " worker -Q cw.miss,cw.revalidate,cw.warm,cw.upkeep; `worker_enable_remote_control` must be on"
    assert after.stdout.count(fix) == after.stdout.count("why  miss: readers load for themselves") == 1


def test_help_lists_the_statuses(cli: Run) -> None:
    reported = " ".join(cli("--help").stdout.split())

    assert "Status 0 when nothing is worse than a note, 1 with a warning, 2 with an error." in reported


def test_upkeep_that_was_not_due_yet_is_distinguished(store: Valkey) -> None:
    """Right after the start nothing has run; later that is a fault, of beat, or of where workers write."""
    config, upkeep = Config(redis_url=store.url), [("collect_garbage", 60.0)]
    (starting,) = check_beat(config, upkeep, running_for=20.0)
    (running,) = check_beat(config, upkeep, running_for=500.0)
    (unknown,) = check_beat(config, upkeep, beat="`celery -A shop beat`")
    (unserved,) = check_beat(config, upkeep, has_worker=False)

    assert [each.level for each in (starting, running, unknown)] == ["ok", "warning", "warning"]
    assert "started 20 s ago, and have 180 s for it" in starting.what
    assert "another store or namespace" in running.what
    assert unknown.fix.startswith("Run `celery -A shop beat`")
    assert "no worker that answers takes queue cw.upkeep, which runs it" in unserved.what


FACTORY = """
from celery import Celery
from sqlalchemy import MetaData, Table, create_engine
from sqlalchemy.orm import sessionmaker
from cacheworkers import Cache, Config
celery = Celery("shop", broker="redis://127.0.0.1:1/0")
sessions = sessionmaker()
cache = Cache(Config.from_env(), celery=celery, sessions=sessions)
cache.watch(sessions, {Table("product", MetaData()): lambda row: ()})
def create_app():
    engine = create_engine("sqlite:///shop.db")
    sessions.configure(bind=engine)
    cache.outbox.create(engine)
"""


@pytest.mark.parametrize(
    ("marks", "check", "level", "shown"),
    [
        ([], "outbox-unbound", "note", "no other process runs"),
        (
            ["database postgresql://localhost/shop", LOADER],
            "outbox-unbound",
            "note",
            "have postgresql://localhost/shop",
        ),
        ([LOADER], "outbox-unknown", "error", "no running process has bound its sessions"),
    ],
)
def test_sessions_that_a_factory_binds_are_no_fault_of_the_command(
    cli: Run, store: Valkey, marks: list[str], check: str, level: str, shown: str
) -> None:
    """Where others are known that have bound none either, it is the application's."""
    web = Cache(Config(redis_url=store.url))
    if marks:
        web.internals.ports.store.note_marks(marks, time.time()).run()
    web.close()

    found = {each["check"]: each for each in json.loads(cli("--json", "--before-start", module=FACTORY).stdout)}

    assert found[check]["level"] == level and shown in found[check]["what"]
    assert not {"outbox-unbound", "outbox-unknown"} - {check} & found.keys()


def test_with_the_factory_doctor_looks_at_the_database_that_it_binds(cli: Run) -> None:
    found = {
        each["check"]: each
        for each in json.loads(cli("--json", "--before-start", module=FACTORY, app="shop:create_app()").stdout)
    }

    assert found["outbox-lag"]["level"] == found["outbox-unknown"]["level"] == "ok"


def test_without_a_loader_doctor_says_which_module_has_them(cli: Run, store: Valkey) -> None:
    web = Cache(Config(redis_url=store.url))
    web.internals.ports.store.note_marks([LOADER], time.time()).run()
    web.close()

    found = {each["check"]: each for each in json.loads(cli("--json", "--before-start", module=FACTORY).stdout)}

    assert found["no-loaders"]["what"] == "no loader declared; running processes declare product in shop.catalog"

"""Doctor's rules, and what the documentation says of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from msgspec import structs

from cacheworkers.ops.doctor.diagnose import RULES
from cacheworkers.ops.doctor.findings import Level, Rule, exit_code, table
from cacheworkers.ops.doctor.store_checks import judge_sentinels, judge_server
from cacheworkers.ops.doctor.worker_checks import judge_app
from cacheworkers.store.diagnostics.sentinel_facts import SentinelFacts
from cacheworkers.store.diagnostics.server_facts import ServerFacts
from cacheworkers.workers.diagnostics import AppFacts, _worker, app_facts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "doctor.md"


def test_the_documentation_has_every_rule_as_the_code_has_it() -> None:
    """After a change, put `table(RULES)` of `cacheworkers.ops.doctor` at the end of docs/how-to/doctor.md."""
    assert PAGE.read_text().endswith("\n\n" + table(RULES) + "\n")


def test_rules_are_distinguished_by_their_names() -> None:
    names = [rule.check for rule in RULES]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.check)
def test_a_rule_says_what_why_and_how(rule: Rule) -> None:
    """In sentences, each of which fills one cell of the table."""
    assert rule.level in ("note", "warning", "error")
    for text in (rule.finds, rule.why, rule.fix):
        assert text.endswith(".") and "\n" not in text
    assert len(re.split(r" (?<!\\)\| ", table([rule]).splitlines()[2])) == 5


@pytest.mark.parametrize(
    ("levels", "code"),
    [((), 0), (("ok", "note"), 0), (("ok", "warning", "note"), 1), (("warning", "error"), 2), (("error",), 2)],
)
def test_the_exit_code_is_that_of_the_worst(levels: tuple[Level, ...], code: int) -> None:
    rules = [Rule("a", level, "b.", "c.", "d.") for level in levels]

    assert exit_code(rule.finding(rule.level != "ok", "e") for rule in rules) == code


SERVER = ServerFacts(
    where="store:6379",
    product="Valkey 9.1",
    version="7.2.4",
    role="master",
    run_id="x",
    policy="volatile-lru",
    maxmemory=1_000_000,
    used_memory=1000,
    evictable=1.0,
    is_appending=True,
    save_every=None,
    is_config_hidden=False,
    clock_ahead=0.0,
    max_clients=1000,
    clients=10,
    output_limit=32_000_000,
)


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("maxclients", {"clients": 900}),
        ("output-buffer", {"output_limit": 0}),
    ],
)
def test_limits_of_connections(check: str, change: dict[str, Any]) -> None:
    good = {finding.check: finding.level for finding in judge_server(SERVER, 600.0)}
    bad = {finding.check: finding.level for finding in judge_server(structs.replace(SERVER, **change), 600.0)}

    assert good[check] == "ok"
    assert {name for name, level in bad.items() if level != "ok"} == {check}


@pytest.mark.parametrize(
    ("named", "known", "level"),
    [
        (3, 3, "ok"),
        (3, 5, "ok"),
        (2, 3, "warning"),
        (1, 1, "warning"),
        (3, 7, "warning"),
        (3, 0, "ok"),
        (2, 0, "warning"),
    ],
)
def test_as_many_sentinels_are_named_as_decide(named: int, known: int, level: str) -> None:
    """Most of those that there are, and three; where no Sentinel may list them, three."""
    nodes = [(f"10.0.0.{nth}", 26379) for nth in range(known or named)]

    finding = judge_sentinels(SentinelFacts("shop", frozenset(nodes[:named]), frozenset(nodes[:known])))

    assert finding.level == level
    assert f"redis_url names {named} Sentinel" in finding.what


def test_no_limit_of_buffers_is_fine_without_maxmemory() -> None:
    server = structs.replace(SERVER, output_limit=0, maxmemory=0)

    assert {f.check: f.level for f in judge_server(server, 600.0)}["output-buffer"] == "ok"


def test_an_app_that_is_eager_or_refuses_json() -> None:
    app = AppFacts({"product": (1, "")}, (), 30.0, 3600.0, {})

    def levels(app: AppFacts) -> dict[str, str]:
        return {finding.check: finding.level for finding in judge_app(app)}

    assert set(levels(app).values()) == {"ok"}
    assert levels(structs.replace(app, is_eager=True))["eager"] == "warning"
    assert levels(structs.replace(app, refuses_json=True))["accept-content"] == "error"


def test_settings_of_a_celery_app_are_read() -> None:
    good, bad = Celery("good"), Celery("bad")
    bad.conf.update(task_always_eager=True, accept_content=["pickle"])

    assert (app_facts(good).is_eager, app_facts(good).refuses_json) == (False, False)
    assert (app_facts(bad).is_eager, app_facts(bad).refuses_json) == (True, True)


def test_workers_of_one_name_are_seen_together() -> None:
    """What one of them lacks the other may have: no queue of theirs is unserved."""
    queues = [[{"name": "cw.miss"}], [{"name": "cw.warm"}]]
    tasks = [["cacheworkers.load.product [loader_version=2 loader_schema=0a1b]"], ["cacheworkers.load.search"]]
    stats = [{"uptime": 5, "prefetch_count": 4, "pool": {"max-concurrency": 4}}, {"uptime": 90}]

    worker = _worker("celery@host", queues, tasks, stats)

    assert (worker.queues, worker.uptime) == ({"cw.miss", "cw.warm"}, 5.0)
    assert (worker.loaders, worker.versions) == ({"product", "search"}, {"product": 2})
    assert worker.schemas == {"product": "0a1b"}

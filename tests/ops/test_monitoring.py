"""Dashboard and alerts speak of metrics that exist, and promtool takes them."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery
from prometheus_client import CollectorRegistry

from app.up import free_port
from cacheworkers import Cache, Config
from cacheworkers.ops.exporter import Exporter
from cacheworkers.ops.metrics import COUNTERS, HISTOGRAMS, LOSSES, SUMS, Metrics, exposition, serve
from cacheworkers.testing import Valkey

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"


@pytest.fixture
def known(valkey: Valkey) -> set[str]:
    """Every series that processes and the exporter show."""
    names = {f"cacheworkers_{name}" for name in [*COUNTERS, *SUMS, *LOSSES]}
    names |= {f"cacheworkers_{name}{end}" for name in HISTOGRAMS for end in ("_bucket", "_count", "_sum")}
    cache = Cache(Config(redis_url=valkey.url, namespace="known", store_timeout=5.0))
    names |= {family.name for family in Exporter(cache).collect()}
    cache.close()
    # These need a broker and an outbox; test_metrics and the shop's own exporter show them.
    return names | {
        "cacheworkers_queue_messages",
        "cacheworkers_queue_oldest_age_seconds",
        "cacheworkers_upkeep_age_seconds",
        "cacheworkers_upkeep_interval_seconds",
        "cacheworkers_outbox_rows",
        "cacheworkers_outbox_oldest_age_seconds",
    }


def series(text: str) -> set[str]:
    return set(re.findall(r"cacheworkers_\w+", text))


def test_alerts_ask_for_series_that_exist_and_say_what_to_do(known: set[str]) -> None:
    rules: list[dict[str, Any]] = [
        rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]

    assert len(rules) >= 10
    for rule in rules:
        asked = series(rule["expr"])
        assert asked <= known and (asked or rule["expr"] == "up == 0"), rule["alert"]  # `up` is Prometheus' own
        assert rule["annotations"]["summary"] and rule["annotations"]["action"], rule["alert"]


def test_each_alert_has_its_line_in_the_runbook() -> None:
    text = (MONITORING.parent / "docs" / "how-to" / "metrics.md").read_text()
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    names = [rule["alert"] for group in groups for rule in group["rules"]]

    assert re.findall(r"^\| `(Cache\w+)` \|", text, re.MULTILINE) == names


def test_what_is_down_is_asked_of_what_runs() -> None:
    """Each configuration looks at the alerts as often as it scrapes: a default of a minute would be late."""
    for name in ("prometheus.yml", "prometheus.compose.yml"):
        config = yaml.safe_load((MONITORING / name).read_text())
        assert config["global"]["evaluation_interval"] == config["global"]["scrape_interval"]


def test_the_exporter_says_which_server_is_down(valkey: Valkey) -> None:
    """On real servers: `cacheworkers_up` is what CacheServerDown and CacheStoreLost ask for."""
    app = Celery("down", broker="redis://127.0.0.1:1/0")
    cache = Cache(Config(redis_url=valkey.url, namespace="down", store_timeout=5.0), celery=app)
    up = next(family for family in Exporter(cache).collect() if family.name == "cacheworkers_up")
    cache.close()

    assert {sample.labels["server"]: sample.value for sample in up.samples} == {"broker": 0.0, "store": 1.0}


def test_the_dashboard_is_the_one_that_is_made_and_asks_for_series_that_exist(known: set[str]) -> None:
    spec = importlib.util.spec_from_file_location("dashboard", MONITORING / "dashboard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kept = json.loads((MONITORING / "dashboard.json").read_text())

    assert kept == module.dashboard(), "make it again: python monitoring/dashboard.py > monitoring/dashboard.json"
    queries = [target["expr"] for panel in kept["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 20
    for query in queries:
        assert series(query) <= known, query
    ids = [panel["id"] for panel in kept["panels"]]
    assert len(ids) == len(set(ids))


def test_the_reference_lists_what_the_exporter_shows(known: set[str]) -> None:
    reported = series((MONITORING.parent / "docs" / "reference" / "metrics.md").read_text())
    of_processes = {f"cacheworkers_{name}" for name in [*COUNTERS, *SUMS, *LOSSES, *HISTOGRAMS]}
    ends = ("_bucket", "_count", "_sum")

    shown = {name for name in known - of_processes if not name.endswith(ends)} - {"cacheworkers_store_evictions"}
    assert shown | {"cacheworkers_store_evictions_total"} <= reported


@pytest.mark.promtool
@pytest.mark.parametrize("words", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")])
def test_promtool_takes_the_alerts(promtool: str, words: tuple[str, ...]) -> None:
    done = subprocess.run([promtool, *words], cwd=MONITORING, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.promtool
@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.compose.yml"])
def test_promtool_takes_the_configurations(promtool: str, name: str) -> None:
    done = subprocess.run([promtool, "check", "config", name], cwd=MONITORING, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.promtool
def test_promtool_takes_the_names_of_the_metrics(promtool: str) -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    done = subprocess.run([promtool, "check", "metrics"], input=exposition(registry), capture_output=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_served_is_what_prometheus_reads() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    port = free_port(9900)
    stop = serve(port, registry=registry)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            assert b"cacheworkers_store_lost 0.0" in answer.read()
    finally:
        stop()

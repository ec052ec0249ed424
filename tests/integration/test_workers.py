"""Real Celery workers, a real broker, a real Postgres."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import own_command
import pytest
from click.testing import CliRunner

from cacheworkers import LoadError
from cacheworkers.ops import warm_command
from cacheworkers.ops.cli import explain
from cacheworkers.testing.servers import free_port, wait_until
from cacheworkers.workers.diagnostics import WorkerFacts

MakeShop = Callable[..., Any]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_workers_load_and_an_invalidation_shows_the_new_price(shop: MakeShop, pool: str) -> None:
    """An engine used before the fork gives each task its own rows, too."""
    here = shop(USE_ENGINE_EARLY="1")
    here.worker("--pool", pool, "-c", "2")

    assert [here.module.product.get(i) for i in range(1, 101)] == [i * 10 for i in range(1, 101)]
    assert here.loads() == 100

    here.sql("UPDATE product SET price = 7 WHERE id = 5")
    here.module.cache.invalidate("product:5")

    assert here.module.product.get(5) == 7


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_shows_its_metrics_itself(shop: MakeShop, tmp_path: Path, pool: str) -> None:
    """In a container of its own no exporter sees its files; its children's counts are there.  A second is refused."""
    here, port = shop(), free_port()
    (tmp_path / "metrics").mkdir()
    metrics = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"), "OWN_METRICS_PORT": str(port)}
    here.worker("--pool", pool, "-c", "2", **metrics)

    assert here.module.product.get(1) == 10

    counted = re.compile(r'^cacheworkers_load_seconds_count{.*loader="product".*where="worker"} 1\.0$', re.MULTILINE)
    wait_until(lambda: counted.search(scraped(port)))
    second = here.worker("--pool", pool, "-c", "1", "-n", "second@%h", **metrics)
    wait_until(lambda: "another exporter may be there" in (tmp_path / "worker1.log").read_text())
    assert second.poll() is None


def scraped(port: int) -> str:
    """Return what Prometheus is shown at a port; empty while nobody is there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_a_miss_does_not_wait_for_workers_that_warm(shop: MakeShop) -> None:
    """Those are behind, or away; the pool that takes misses has nothing to do.  No reader loads this one itself."""
    here = shop()
    here.worker("-c", "1", "-Q", "cw.miss")

    assert here.module.strict.revalidate(1)
    assert here.module.strict.get(1) == 10


def test_the_command_that_warms_waits_for_a_worker_that_knows_the_loader(shop: MakeShop) -> None:
    here = shop()
    here.worker("-c", "1", "-Q", "cw.warm")

    done = warm(here, "product", "1", "2", "3", "--wait-for-workers", "300")

    assert done.returncode == 0, done.stderr
    assert here.loads() == 3


def test_the_command_that_warms_wants_workers_of_its_own_release(
    shop: MakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they load, processes of this release could not read."""
    here = shop()
    spec = here.module.cache.loaders["product"]
    other = {"product": "ab" * 8}
    queues = frozenset({"cw.warm", "cw.miss"})
    facts = WorkerFacts("old@host", queues, frozenset({"product"}), {"product": 1}, other)
    monkeypatch.setattr(warm_command, "worker_facts", lambda app: [facts])

    with pytest.raises(click.ClickException, match=r"with this return type, parameters and tags: old@host consumes"):
        warm_command.require_worker(here.module.cache, "product", 0.0)
    said = CliRunner().invoke(explain, ["product[94]"], obj=(here.module.cache, None)).output
    assert "no worker loads it: no worker knows product with this return type" in said
    assert said.startswith("product[94]: load it in the reader, after at most ")
    assert facts.loads("product", 1, "ab" * 8) and not facts.loads("product", 1, spec.fingerprint.hex())


def test_explain_says_what_workers_lack(shop: MakeShop, monkeypatch: pytest.MonkeyPatch) -> None:
    here = shop()
    facts = WorkerFacts("bare@host", frozenset({"cw.miss"}), frozenset())
    monkeypatch.setattr(warm_command, "worker_facts", lambda app: [facts])

    said = CliRunner().invoke(explain, ["product[94]"], obj=(here.module.cache, None)).output

    assert "bare@host consumes cw.miss, and does not know product: restart it with this code" in said
    assert "`app.conf.include = ['shop']`" in said


def test_the_command_that_warms_asks_for_nothing_where_workers_take_other_queues(shop: MakeShop) -> None:
    here = shop()
    here.worker("-c", "1", "-Q", "cw.miss")

    done = warm(here, "product", "1", "--wait-for-workers", "3")

    assert done.returncode == 1
    assert (
        "no worker that answers consumes cw.warm: start `celery -A shop worker -Q cw.revalidate,cw.warm,cw.upkeep`"
        in done.stderr
    )
    assert here.loads() == 0


def warm(here: Any, *words: str) -> subprocess.CompletedProcess[str]:
    words = ("--app", "shop:cache", "warm", *words)
    return own_command.run(words, cwd=Path(__file__).parent, env={**os.environ, **here.env})


def test_worker_killed_in_mid_load_and_the_key_heals(shop: MakeShop) -> None:
    here = shop()
    here.worker("-c", "1")

    assert here.module.deadly.get() == 1


def test_loader_cannot_write_and_its_failure_reaches_the_reader(shop: MakeShop) -> None:
    here = shop()
    here.worker("-c", "1")

    with pytest.raises(LoadError, match="read-only"):
        here.module.writes.get()


def test_malformed_message_and_unknown_loader_crash_nothing(shop: MakeShop) -> None:
    here = shop()
    worker = here.worker("-c", "1")
    send = here.module.app.send_task
    send("cacheworkers.load.product", kwargs={"asks": "nonsense"}, queue="cw.miss")
    send("cacheworkers.load.product", kwargs={"asks": [["other[1]", "ab", "", "miss"]]}, queue="cw.miss")
    send("cacheworkers.load.nobody", kwargs={"asks": [["nobody[1]", "ab" * 8, "", "miss"]]}, queue="cw.miss")

    assert here.module.product.get(1) == 10
    assert worker.poll() is None


def test_broker_away_costs_hits_nothing_and_misses_are_loaded_here(shop: MakeShop) -> None:
    here = shop()
    module = here.module
    module.app.conf.broker_url = "redis://127.0.0.1:1/0"
    module.app.conf.broker_write_url = "redis://127.0.0.1:1/0"

    assert module.product.get(3) == 30
    assert module.product.read(3).freshness.value == "fresh"
    module.cache.invalidate("product:3", mode="soft")
    assert module.product.read(3).freshness.value == "stale"

"""What a worker takes that is started without `-Q`, in which order, and what it logs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_pools import TOKEN, Pool

from cacheworkers.flows.ports import LoadRequest
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers.publish_queue import LoaderInfo

QUIET = ("--pool", "solo", "--prefetch-multiplier", "1")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Valkey() as valkey:
        made = Pool(valkey, tmp_path)
        yield made
        made.close()


def fill(pool: Pool, queue: Any, *calls: str) -> None:
    for call in calls:
        before = len(pool.events)
        assert pool.publisher.submit_all([LoadRequest("product", call, TOKEN, "", queue)])
        wait_until(lambda before=before: len(pool.events) > before)


def test_a_worker_without_q_loads_what_readers_wait_for_first(pool: Pool) -> None:
    """Whatever came first; and the app's own queue is served beside ours."""
    fill(pool, "warm", "product[1]", "product[2]")
    fill(pool, "revalidate", "product[3]")
    fill(pool, "miss", "product[4]", "product[5]")
    pool.app.send_task("cacheworkers.collect_garbage", queue="celery")

    pool.start(*QUIET, queues="")
    wait_until(lambda: len(pool.notes("run_loads")) == 5 and pool.notes("collect_garbage"))

    assert [call for _, call, _ in pool.notes("run_loads")] == [f"product[{n}]" for n in (4, 5, 3, 1, 2)]


def test_lines_about_our_tasks_are_debug(pool: Pool) -> None:
    """An idle worker's log at INFO does not consist of what beat sends every few seconds."""
    pool.start(*QUIET, queues="")
    fill(pool, "miss", "product[1]")
    pool.app.send_task("cacheworkers.collect_garbage", queue="cw.upkeep")
    wait_until(lambda: pool.notes("run_loads") and pool.notes("collect_garbage"))
    pool.stop()

    lines = pool.log_path.read_text().splitlines()
    assert [line for line in lines if "received" in line or "succeeded" in line] == []


def test_lines_about_our_tasks_are_there_at_debug(pool: Pool) -> None:
    pool.start(*QUIET, "-l", "DEBUG", queues="")
    fill(pool, "miss", "product[1]")
    wait_until(lambda: pool.notes("run_loads"))
    pool.stop()

    assert re.search(r"DEBUG/MainProcess\] Task cacheworkers.load.product\[.*\] received", pool.log_path.read_text())


def test_a_worker_that_takes_none_of_our_queues_logs_the_command_of_one_that_does(pool: Pool) -> None:
    pool.start(*QUIET, queues="celery")

    wait_until(lambda: "consumes none of the cache's queues" in pool.log_path.read_text())

    log = pool.log_path.read_text()
    assert "celery -A bound worker -Q cw.miss,cw.revalidate,cw.warm,cw.upkeep" in log


def test_a_worker_that_knows_no_loader_logs_the_line_that_is_missing(pool: Pool) -> None:
    pool.env["NO_LOADERS"] = "1"
    pool.start(*QUIET, queues="")

    wait_until(lambda: "knows no loader" in pool.log_path.read_text())

    assert 'app.conf.include = ["shop.loaders"]' in pool.log_path.read_text()


def test_a_worker_that_lacks_a_loader_logs_the_line_that_imports_it(pool: Pool) -> None:
    """The message says which module declares it."""
    pool.publisher.register(LoaderInfo("nobody", 10.0, False, 100, module="shop.pages"))
    pool.start(*QUIET)

    pool.ask("nobody[1]")

    wait_until(lambda: "app.conf.include = ['shop.pages']" in pool.log_path.read_text())

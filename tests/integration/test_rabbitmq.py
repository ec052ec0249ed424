"""RabbitMQ as the broker, with classic and with quorum queues: the same promises as on Redis."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rabbitmq import QUEUES, RabbitMQ
from test_pools import TOKEN, Pool

from cacheworkers.errors import CacheworkersError
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.ops.doctor import diagnose
from cacheworkers.ops.exporter import Exporter
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers.diagnostics import worker_facts

pytestmark = pytest.mark.rabbitmq

#: What users set for each type of queue.
SETTINGS: dict[str, dict[str, Any]] = {
    "classic": {},
    "quorum": {"task_default_queue_type": "quorum", "task_create_missing_queue_type": "quorum"},
}


#: One of two is enough for each test in the quick suite.
@pytest.fixture(params=["classic", pytest.param("quorum", marks=pytest.mark.heavy)])
def pool(rabbitmq: str, valkey: Valkey, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pool]:
    made = Pool(valkey, tmp_path, rabbitmq, **SETTINGS[request.param])
    yield made
    made.close()


def test_a_worker_without_q_serves_the_cache_and_the_app(pool: Pool) -> None:
    """Each message runs once and is gone, the user's with a countdown and those acknowledged late as well."""
    pool.start("-c", "2", queues="")

    pool.ask("product[1]", "product[2]")
    pool.app.send_task("late", (1,))
    pool.app.send_task("late", (2,), countdown=1)
    pool.app.send_task("early", (3,), countdown=1)
    pool.app.send_task("cacheworkers.collect_garbage")

    wait_until(lambda: len(pool.performed()) == 2 and len(pool.notes("late")) == 2 and pool.notes("early"))
    wait_until(lambda: pool.notes("collect_garbage"))
    pool.stop()
    assert sorted(pool.performed()) == [("product[1]", False), ("product[2]", False)]
    assert sorted(n for _, n in pool.notes("late")) == [1, 2]
    assert [n for _, n in pool.notes("early")] == [3]
    assert pool.waiting() == 0  # the worker has ended: what it had not acknowledged would be back


@pytest.mark.heavy
def test_the_message_of_a_killed_child_comes_back_marked_redelivered(pool: Pool) -> None:
    pool.start("-c", "1")

    pool.ask("deadly[1]")

    wait_until(lambda: len(pool.performed()) == 2)
    assert pool.performed() == [("deadly[1]", False), ("deadly[1]", True)]


@pytest.mark.heavy
def test_queues_report_their_length(pool: Pool, rabbitmq_node: RabbitMQ) -> None:
    """A queue that no worker has declared yet is empty; a message to it is lost, and its lease heals the call."""
    assert [state.length for state in pool.publisher.queue_states()] == [0, 0, 0, 0]
    pool.start("-c", "1", queues="cw.miss,cw.warm")
    pool.stop()

    assert pool.publisher.submit_all([LoadRequest("product", "product[1]", TOKEN, "", "warm")])

    wait_until(lambda: rabbitmq_node.length("cw.warm") == 1)
    assert [state.length for state in pool.publisher.queue_states()] == [0, 0, 1, 0]


@pytest.fixture(params=["quorum", pytest.param("classic", marks=pytest.mark.heavy)])
def here(shop: Callable[..., Any], rabbitmq: str, request: pytest.FixtureRequest) -> Any:
    kinds = SETTINGS[request.param]
    return shop(BROKER_URL=rabbitmq, QUEUE_TYPE="quorum" if kinds else "classic", LOAD_TIME="0.05")


def test_misses_are_loaded_once_and_invalidated(here: Any) -> None:
    """Many readers of one product: one load, by a worker.  Doctor and exporter see queues, workers and upkeep."""
    here.worker("-c", "2", "--beat", "-s", str(here.tmp_path / "schedule"), "--prefetch-multiplier", "1")
    values: list[int] = []
    products = [n % 5 + 1 for n in range(20)]
    readers = [threading.Thread(target=lambda n=n: values.append(here.module.product.get(n))) for n in products]

    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    here.sql("UPDATE product SET price = 7 WHERE id = 5")
    here.module.cache.invalidate("product:5")

    assert sorted(values) == sorted([10, 20, 30, 40, 50] * 4)
    assert here.module.product.get(5) == 7
    assert here.loads() == 6
    findings = {finding.check: finding for finding in diagnose(here.module.cache, timeout=60.0)}
    for check in ("broker-away", "queue-unserved", "queue-backlog", "worker-store", "loader-unknown", "prefetch"):
        assert check not in findings or findings[check].level == "ok", findings[check]
    assert not {"check-failed", "visibility-timeout"} & findings.keys()
    samples = [sample for family in Exporter(here.module.cache).collect() for sample in family.samples]
    assert {s.labels["queue"] for s in samples if s.name == "cacheworkers_queue_messages"} == set(QUEUES)
    assert {s.labels["server"]: s.value for s in samples if s.name == "cacheworkers_up"}["broker"] == 1.0


@pytest.mark.heavy
def test_a_broker_that_restarts_costs_no_read(shop: Callable[..., Any]) -> None:
    """While it is away readers load for themselves; the worker outlives it, and takes misses again."""
    with RabbitMQ() as broker:
        here = shop(BROKER_URL=broker.url)
        worker = here.worker("-c", "1")
        assert here.module.strict.get(1) == 10

        broker.kill()
        assert here.module.product.get(2) == 20
        broker.start()

        wait_until(lambda: answering(here.module.app) == 1)
        assert here.module.strict.get(3) == 30
        assert worker.poll() is None


def answering(app: Any) -> int:
    """Return how many workers answer."""
    with contextlib.suppress(CacheworkersError):
        return len(worker_facts(app))
    return 0

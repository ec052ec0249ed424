"""A cluster of workers, restarted and killed under load: pytest-celery's nodes, over processes of this machine."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestSetup, CeleryWorkerCluster

from cacheworkers.testing.servers import wait_until

pytest_plugins = ("pytest_celery.plugin",)

HERE = Path(__file__).parent


@pytest.fixture
def here(shop: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    made = shop(LOAD_TIME="0.02", LEASE_TIME=getattr(request, "param", "2"))
    made.sql("INSERT INTO product SELECT i, i * 10 FROM generate_series(201, 50000) i")
    return made


@pytest.fixture
def celery_broker_cluster() -> None:
    """The shop has a broker."""


@pytest.fixture
def celery_backend_cluster() -> None:
    """Loads have no results."""


@pytest.fixture
def celery_setup_app(here: Any) -> Any:
    return here.module.app


@pytest.fixture
def celery_worker_cluster(here: Any, cacheworkers_start_workers: Callable[..., CeleryWorkerCluster]) -> Any:
    """Two workers on all four queues."""
    return cacheworkers_start_workers(here.module.app, "first", "second", options=("-c", "2"), env=here.env, cwd=HERE)


class Readers:
    """Threads that read one product after the other, each once."""

    def __init__(self, product: Any) -> None:
        self._product = product
        self._numbers = itertools.count(1)
        self._is_over = threading.Event()
        self.wrong: list[str] = []
        self.done = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._read) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()

    def go_on(self) -> None:
        """Return when some more have been read."""
        enough = self.done + 6
        wait_until(lambda: self.done >= enough)

    def _read(self) -> None:
        while not self._is_over.is_set():
            number = next(self._numbers)
            try:
                value = self._product.get(number)
            except Exception as error:
                self.wrong.append(f"{number}: {error!r}")
            else:
                if value != 10 * number:
                    self.wrong.append(f"{number}: {value}")
            self.done += 1


@pytest.mark.heavy
@pytest.mark.parametrize("here", ["60"], indirect=True)
def test_a_rolling_restart_costs_no_read_and_no_load(here: Any, celery_setup: CeleryTestSetup) -> None:
    """Each worker in turn ends what it has begun, as a deploy asks of it; what it had taken, the other gets."""
    wait_until(lambda: celery_setup.ready(control=True))
    readers = Readers(here.module.patient)

    with readers.reading():
        for node in celery_setup.worker_cluster:
            readers.go_on()
            node.restart()
            wait_until(lambda node=node: "Task cacheworkers.load.patient" in node.logs())

    assert readers.wrong == []
    assert here.loads() == readers.done, "each product was loaded once"


def test_a_killed_worker_costs_no_read(here: Any, celery_setup: CeleryTestSetup) -> None:
    """Nothing is ended, nothing put back: readers wait for the other worker, or load for themselves."""
    readers = Readers(here.module.patient)

    with readers.reading():
        for node in celery_setup.worker_cluster:
            readers.go_on()
            node.kill()
            assert node.container.status == "exited"
            readers.go_on()
            node.container.restart()

    assert readers.wrong == []
    wait_until(lambda: celery_setup.ready(control=True))

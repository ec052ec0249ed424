"""The stages of this machine, one after the other; what cannot be started here is named at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from deployments import Deployment, Kind, missing
from matrix import BROKERS, SERVERS, SHAPES, ids
from rabbitmq import RabbitMQ, rabbitmq_program
from stages import Stage

from cacheworkers.testing import Valkey

KINDS = [Kind(shape, *server) for shape in SHAPES for server in SERVERS]
#: The quick ones: each shape, without a broker, on the server that is always there.
QUICK = {(kind, "threads") for kind in KINDS if kind.product == "valkey"}

_left_out: dict[str, int] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test of a stage all combinations; those that need minutes together are heavy."""
    if "stage" not in metafunc.fixturenames:
        return
    stages = [(kind, broker) for kind in KINDS for broker in BROKERS]
    marks = [() if stage in QUICK else (pytest.mark.heavy,) for stage in stages]
    metafunc.parametrize(
        "stage",
        [pytest.param(stage, id=name, marks=mark) for stage, name, mark in zip(stages, ids(), marks, strict=True)],
        indirect=True,
        scope="module",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot be started on this machine; the summary says so."""
    for item in list(items):
        stage = getattr(item, "callspec", None) and item.callspec.params.get("stage")  # type: ignore[attr-defined]
        if not stage:
            continue
        reason = missing(stage[0])
        if not reason and stage[1] == "rabbitmq" and rabbitmq_program() is None:
            reason = "no rabbitmq-server"
        if reason:
            items.remove(item)
            config.hook.pytest_deselected(items=[item])
            _left_out[reason] = _left_out.get(reason, 0) + 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason, count in sorted(_left_out.items()):
        terminalreporter.write_line(f"{count} tests of topologies did NOT run: {reason} here", yellow=True)


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    kind, broker = request.param
    with Deployment(kind) as store:
        url = ""
        if broker == "redis":
            url = request.getfixturevalue("redis_broker").url
        elif broker == "rabbitmq":
            node: RabbitMQ = request.getfixturevalue("rabbitmq_node")
            node.clear()
            url = node.url
        made = Stage(store, url, tmp_path_factory.mktemp("stage"))
        yield made
        made.close()


@pytest.fixture(scope="module")
def redis_broker() -> Iterator[Valkey]:
    """One for all stages, which end one after the other."""
    with Valkey() as server:
        yield server

"""Doctor finds a driver that keeps prepared statements behind a pooler, which makes up the process number it gives."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache
from cacheworkers.ops.doctor import diagnose
from cacheworkers.sql.outbox.diagnostics import pooler_facts


class Pooler:
    """Passes everything between clients and a server on a Unix socket but the server's process number."""

    def __init__(self, folder: str, port: int) -> None:
        self._server = f"{folder}/.s.PGSQL.{port}"
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        has_key = not is_reply
        try:
            while data := source.recv(65536):
                # BackendKeyData: K, its length of 12, process, key.
                at = -1 if has_key else data.find(b"K" + (12).to_bytes(4))
                if at >= 0:
                    data, has_key = data[: at + 5] + (99).to_bytes(4) + data[at + 9 :], True
                sink.sendall(data)
        except OSError:
            pass
        sink.close()


@pytest.fixture
def pooled(database_url: str) -> Iterator[Any]:
    whole = make_url(database_url)
    pooler = Pooler(str(whole.query["host"]), int(whole.port or 5432))
    yield whole.set(host="127.0.0.1", port=pooler.port, query={})
    pooler.close()


def found(cache: Cache) -> list[tuple[str, str]]:
    return [(each.level, each.what) for each in diagnose(cache, is_running=False) if each.check == "pooler"]


def test_prepared_statements_behind_a_pooler(make_cache: Callable[..., Cache], pooled: Any) -> None:
    [(level, what)] = found(make_cache(sessions=sessionmaker(create_engine(pooled))))

    assert level == "warning" and 'connect_args={"prepare_threshold": None}' in what


def test_the_documented_setting(make_cache: Callable[..., Cache], pooled: Any) -> None:
    engine = create_engine(pooled, connect_args={"prepare_threshold": None})

    [(level, what)] = found(make_cache(sessions=sessionmaker(engine)))

    assert level == "ok" and "keeps no prepared statements" in what


@pytest.mark.parametrize("size", [0, 100])
def test_asyncpg_says_whether_it_keeps_any(database_url: str, size: int) -> None:
    url = make_url(database_url).set(drivername="postgresql+asyncpg")
    facts = pooler_facts(create_async_engine(url, connect_args={"statement_cache_size": size}).sync_engine)

    assert facts is not None
    assert (facts.is_there, facts.prepares) == (False, size > 0)
    assert "statement_cache_size" in facts.setting


def test_no_pooler(make_cache: Callable[..., Cache], database_url: str) -> None:
    assert [level for level, _ in found(make_cache(sessions=sessionmaker(create_engine(database_url))))] == ["ok"]

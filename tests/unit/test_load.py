"""The load generator's streams."""

from __future__ import annotations

import lzma
import multiprocessing
import queue
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from app import replay
from app.load import product_ids, trace_keys, zipf_keys
from app.replay import loopback


@pytest.mark.parametrize(("kind", "code"), [("ints", ">3i"), ("longs", ">3q")])
def test_traces_of_both_formats_are_read(tmp_path: Path, kind: str, code: str) -> None:
    path = tmp_path / "trace.xz"
    path.write_bytes(lzma.compress(struct.pack(code, 5, -7, 5)))

    assert trace_keys(path, kind) == [5, -7, 5]


def test_cut_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.xz"
    path.write_bytes(lzma.compress(b"12345"))

    with pytest.raises(ValueError, match="5 bytes"):
        trace_keys(path, "ints")


def test_equal_keys_are_one_product() -> None:
    assert product_ids([9, 4, 9, 8], 10) == [1, 2, 1, 3]
    assert product_ids([1, 2, 3], 2) == [1, 2, 1]


def test_zipf_is_seeded_and_skewed() -> None:
    keys = zipf_keys(10_000, 100, 1.0)

    assert keys == zipf_keys(10_000, 100, 1.0)
    assert keys.count(1) > 5 * keys.count(50)


def test_only_this_machine_is_loaded() -> None:
    assert loopback("http://127.0.0.1:8000") == ("127.0.0.1", 8000)
    with pytest.raises(ValueError, match=r"example\.org"):
        loopback("http://example.org")


def test_requests_that_fail_are_counted_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers once a connection, then closes it; once it is gone, the load gives up."""
    monkeypatch.setattr(replay, "PAUSE", 0.0)
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(5):
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            connection.close()
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    done = multiprocessing.get_context("spawn").Value("q", 0)

    replay.replay([1] * 1000, f"http://127.0.0.1:{server.getsockname()[1]}", "/p", 1, replay.Changes(1), done, found)

    thread.join()
    latencies, kinds, stale_for = found.get()
    assert kinds["200"] == 5
    assert replay.GIVES_UP_AFTER <= sum(kinds.values()) - 5 <= replay.GIVES_UP_AFTER + 5
    assert all(kind == "200" or kind.startswith(replay.FAILED) for kind in kinds)
    assert len(latencies) == sum(kinds.values())
    assert stale_for == []

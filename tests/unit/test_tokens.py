"""Tokens: no two alike, in threads and in forks that run no hooks."""

from __future__ import annotations

import os
import threading

import pytest

from cacheworkers.core.tokens import new_token


def test_threads_get_distinct_tokens_of_16_hex_digits() -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(new_token() for _ in range(500))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(found)) == 2000
    assert {len(bytes.fromhex(each)) for each in found} == {8}


def test_a_fork_uses_none_that_its_parent_has_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    new_token()
    left, pid = list(new_token._left), os.getpid()
    assert left
    new_token._left = iter(left)

    monkeypatch.setattr(os, "getpid", lambda: pid + 1)  # as in a child that was forked in C

    assert not {new_token() for _ in range(len(left))} & set(left)

"""Runs one page whole: its scene, its servers, its blocks."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest

from cacheworkers.testing import Postgres, Valkey

from . import prelude
from .blocks import blocks_of
from .running import Page

_names = itertools.count(1)
OUTCOMES = {"run", "compiled", "written", "checked", "executed", "printed", "shown", "parsed", "drawn", "directive"}


def run_page(page: str, postgres: Postgres, directory: Path, patch: pytest.MonkeyPatch) -> None:
    """Run a page's blocks in order, in one namespace, on a store and a database of its own; none is left out.

    Raises:
        AssertionError: a block does not do what the page says.
    """
    blocks = [*prelude.SCENES.get(page, ()), *blocks_of(page)]
    is_session = any(block.mark == "file" for block in blocks)
    is_run = any((block.language, block.mark) == ("python", "") for block in blocks)
    patch.chdir(directory)

    def new_database() -> str:
        return postgres.create_database(f"docs{next(_names)}")

    with contextlib.ExitStack() as servers:
        patch.setenv("CACHEWORKERS_STORE_TIMEOUT", "5")
        starts_servers = page in prelude.STARTING or any(block.says == "servers.py" for block in blocks)
        # What a reader of the page has not installed, and what takes a second of each run.
        patch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:faker -p no:docker_tools -p no:valkey")
        if starts_servers:
            patch.delenv("REDIS_URL", raising=False)
            patch.delenv("DATABASE_URL", raising=False)
        elif is_run or is_session:  # it takes both from the environment
            patch.setenv("REDIS_URL", servers.enter_context(Valkey()).url)
            patch.setenv("DATABASE_URL", new_database())
        names = prelude.of(page) if is_run else {}
        with Page(page, directory, names, is_session=is_session, new_database=new_database) as running:
            done = [running.run_loads(block) for block in blocks]

    assert len(done) == len(blocks)
    assert set(done) <= OUTCOMES

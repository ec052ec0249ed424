"""The README and the tutorials work as pasted; a file of its own, which runs beside that of all other pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from cacheworkers.testing import Postgres

from .blocks import pages
from .page_run import run_page

TUTORIALS = ["README.md", *(page for page in pages() if page.startswith("docs/tutorial/"))]


@pytest.mark.parametrize("page", TUTORIALS)
def test_every_block_works(page: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, postgres, tmp_path, monkeypatch)

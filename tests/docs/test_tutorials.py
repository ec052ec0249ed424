"""The README and the tutorials work as pasted; a file of its own, which runs beside that of all other pages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from forked import heed_signals

from cacheworkers.testing import Postgres
from cacheworkers.testing.servers import wait_until

from .blocks import blocks_of, pages
from .page_run import run_page

TUTORIALS = ["README.md", *(page for page in pages() if page.startswith("docs/tutorial/"))]


@pytest.mark.parametrize("page", TUTORIALS)
def test_every_block_works(page: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, postgres, tmp_path, monkeypatch)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_servers_py_leaves_nothing_behind(tmp_path: Path, how: signal.Signals) -> None:
    """However it is ended; the tutorials have the same."""
    [text] = {block.text for page in TUTORIALS for block in blocks_of(page) if block.says == "servers.py"}
    (tmp_path / "servers.py").write_text(text)
    made = Path(tempfile.mkdtemp(prefix="cw"))  # as root, Postgres runs as nobody, whom tmp_path lets nowhere
    made.chmod(0o755)
    env = {**os.environ, "TMPDIR": str(made)}
    with subprocess.Popen([sys.executable, "servers.py"], cwd=tmp_path, env=env, preexec_fn=heed_signals) as process:
        try:
            wait_until(lambda: (tmp_path / "urls.sh").exists() or process.poll() is not None)
            assert len(list(made.iterdir())) == 3
        finally:
            process.send_signal(how)
        assert process.wait(60) == 0

    made.rmdir()  # which refuses what is not empty

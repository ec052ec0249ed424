"""What the shop's programs say when a setting is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "app.load", "--requests", "1"],
        ["-m", "app.seed"],
        ["-m", "app.drain"],
        ["-m", "celery", "-A", "app.worker", "worker"],
        ["-c", "from cacheworkers.ops.cli import main; main()", "-A", "app.shop:cache", "stats"],
    ],
    ids=" ".join,
)
def test_without_a_database_s_address_it_ends_with_one_line(words: list[str]) -> None:
    """`Error:`, the setting and its form; as every other error of a command, and no traceback."""
    env = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}

    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: DATABASE_URL must name the shop's database, postgresql+psycopg://")

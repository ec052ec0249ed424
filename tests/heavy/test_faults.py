"""Faults of nineteen kinds, eleven behind Sentinels, under readers and a writer; the history checker judges."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.heavy


@pytest.mark.parametrize(
    ("shape", "faults"), [("standalone", 208), ("sentinel", 40), ("cluster", 40), ("snapshot", 24)]
)
def test_no_fault_brings_an_old_value_back_and_none_lasts(shape: str, faults: int) -> None:
    """After each the store is of use again, and no read is older than an acknowledged invalidation."""
    words = [sys.executable, "-m", "benchmarks.faults", "--faults", str(faults), "--shapes", shape]

    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{faults} faults" in done.stdout and " 0 too old" in done.stdout

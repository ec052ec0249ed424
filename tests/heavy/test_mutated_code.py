"""Mutants made by machine are killed by the suite: a fifth of the sample, or all of it with `MUTANTS=200`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
pytestmark = pytest.mark.heavy


def test_no_mutant_survives_but_those_that_change_nothing(tmp_path: Path) -> None:
    """`survivors.json` says of each that survives why no test can, or need, distinguish it from the code."""
    explained = json.loads((HERE / "survivors.json").read_text())
    wanted = int(os.environ.get("MUTANTS", "40"))
    words = [sys.executable, str(HERE / "mutants.py")]

    subprocess.run([*words, "map", str(tmp_path / "map")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run(
        [*words, "run", str(tmp_path / "map"), "0", "200", str(200 // wanted)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )

    outcomes = [line.partition(": ")[::2] for line in done.stdout.splitlines()]
    assert len(outcomes) >= wanted
    left = [name for outcome, name in outcomes if outcome in ("survived", "untested") and name not in explained]
    assert not left

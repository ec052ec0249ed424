"""Mutants made by machine are killed by the suite: 200 of them, or fewer with `MUTANTS=20`."""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
MUTANTS = 200
pytestmark = pytest.mark.heavy


def test_no_mutant_survives_but_those_that_change_nothing(tmp_path: Path) -> None:
    """`survivors.json` says of each that survives why no test can, or need, distinguish it from the code.

    It takes about three quarters of an hour on two cores, the tests' map of functions included.
    """
    faulthandler.cancel_dump_traceback_later()  # which ends a test that takes longer than others may
    explained = json.loads((HERE / "survivors.json").read_text())
    wanted = int(os.environ.get("MUTANTS", MUTANTS))
    words = [sys.executable, str(HERE / "mutants.py")]

    subprocess.run([*words, "map", str(tmp_path / "map")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    sample = ["0", str(MUTANTS), str(MUTANTS // wanted)]
    with (tmp_path / "outcomes").open("w") as file:  # a line a mutant, as they come
        subprocess.run([*words, "run", str(tmp_path / "map"), *sample], cwd=ROOT, check=True, stdout=file)

    outcomes = [line.partition("\t")[::2] for line in (tmp_path / "outcomes").read_text().splitlines()]
    assert len(outcomes) >= wanted
    print(Counter(outcome.split()[0] for outcome, _ in outcomes), file=sys.stderr)
    left = [name for outcome, name in outcomes if outcome in ("survived", "untested") and name not in explained]
    assert not left, "\n".join(left)

"""The promises at full size, each in processes of its own: the benchmarks, with their counts asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.heavy


def printed_by(code: str, directory: Path) -> str:
    """Run code in an interpreter of its own, for it sets its environment and spawns; return what it prints."""
    script = directory / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\nif __name__ == '__main__':\n    {code}\n")
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_50_000_readers_of_a_cold_key_are_one_load(tmp_path: Path) -> None:
    code = "from benchmarks.stampede import rounds; print([each[:2] for each in rounds(50_000, 4, 2)])"

    assert printed_by(code, tmp_path) == "[(1, 50000), (1, 50000)]"


def test_1_000_changes_are_never_followed_by_an_old_value(tmp_path: Path) -> None:
    code = "from benchmarks.visible import changes; print(changes(1000)[0])"

    assert printed_by(code, tmp_path) == "0"


def test_nothing_old_is_read_while_everything_dies_or_goes_wrong_in_part(tmp_path: Path) -> None:
    code = "from benchmarks.soak import soak; r = soak(200_000); print(r.old, r.unequal, r.late, min(len(r.acts), 3))"

    assert printed_by(code, tmp_path) == "[] [] 0 3"

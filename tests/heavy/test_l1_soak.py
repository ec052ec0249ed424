"""The soak of L1, in short: real processes, real pushes, a link that dies all the time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.heavy


def test_no_read_from_memory_is_older_than_what_it_had_received(tmp_path: Path) -> None:
    """In processes of their own, for they are spawned, and some fork."""
    code = "from benchmarks.l1_soak import soak; r = soak(10, fault_every=0.1)"
    reported = "print(r.old, r.reads['l1'] > 0, r.changes > 0, r.proofs > 0, len(r.faults) > 2)"
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nif __name__ == '__main__':\n    {code}; {reported}\n"
    )

    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, "[] True True True True\n"), done.stderr

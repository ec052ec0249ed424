"""What some faults need of the machine: packets that are dropped, and a server's clock that steps."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cacheworkers.testing import Valkey

_CLOCK = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu" / "faketime" / "libfaketime.so.1"


@functools.cache
def can_drop_packets() -> bool:
    """Return whether this process may have the kernel drop packets: root, and iptables."""
    words = ["iptables", "--wait", "--list", "INPUT", "--numeric"]
    return bool(shutil.which("iptables")) and subprocess.run(words, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def cut_off(ports: Sequence[int]) -> Iterator[None]:
    """Drop all packets to ports of this machine and from there; connections stay open, and nothing arrives."""
    rules = [
        ["INPUT", "--in-interface", "lo", "--protocol", "tcp", side, str(port), "--jump", "DROP"]
        for port in ports
        for side in ("--dport", "--sport")
    ]
    with contextlib.ExitStack() as stack:
        for rule in rules:
            subprocess.run(["iptables", "--wait", "--insert", *rule], check=True)
            stack.callback(subprocess.run, ["iptables", "--wait", "--delete", *rule], check=True)
        yield


def can_step_clocks() -> bool:
    """Return whether Debian's faketime is there."""
    return _CLOCK.exists()


class SteppingValkey(Valkey):
    """A server whose clock steps where faketime is there; its entries outlive it until they are deleted."""

    def __init__(self, **config: str) -> None:
        super().__init__(persist=True, **config)
        self._ahead = self.dir / "ahead"
        self.step(0)

    def command(self) -> tuple[Sequence[str], dict[str, Any]]:
        """Return the command line, and an environment in which the library of faketime gives the time."""
        words, options = super().command()
        if not can_step_clocks():
            return words, options
        clock = {"LD_PRELOAD": str(_CLOCK), "FAKETIME_TIMESTAMP_FILE": str(self._ahead), "FAKETIME_NO_CACHE": "1"}
        return words, {**options, "env": {**os.environ, **clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}}

    def step(self, seconds: int) -> None:
        """Set its clock ahead of the machine's by this from now on."""
        written = self.dir / "ahead.new"
        written.write_text(f"{seconds:+d}s\n")
        written.rename(self._ahead)

    def delete_entries(self) -> None:
        """Delete what it has on disk, while it does not run."""
        shutil.rmtree(self.dir / "appendonlydir")

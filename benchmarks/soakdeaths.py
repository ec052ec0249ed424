"""Deaths in exact windows: a process of the soak kills itself right before a step, as often as its environment says.

    SOAK_DIES_BEFORE='register=0.001 write=0.001' SOAK_DEATHS=/tmp/deaths

A window is named by what comes next: a method of the store, or what the process itself calls `Deaths.before` with.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

CHANCES, NOTES = "SOAK_DIES_BEFORE", "SOAK_DEATHS"


class Deaths:
    """How likely this process dies before which step; every death is noted in a file first."""

    def __init__(self, chances: dict[str, float], notes: str) -> None:
        self._chances = chances
        self._notes = notes

    @classmethod
    def of_environment(cls) -> Deaths:
        """Return those that this process was started with: none, if nothing is said."""
        words = (word.partition("=") for word in os.environ.get(CHANCES, "").split())
        return cls({window: float(chance) for window, _, chance in words}, os.environ.get(NOTES, os.devnull))

    def before(self, window: str) -> None:
        """Die now, or not."""
        if random.random() < self._chances.get(window, 0.0):
            with open(self._notes, "a") as notes:
                notes.write(f"{window}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def before_steps_of(self, store: Any) -> None:
        """Die before steps of a store: a flow asks for each right before it is performed."""
        for window in self._chances:
            step = getattr(store, window, None)
            if step is not None:
                setattr(store, window, self._dying(window, step))

    def _dying(self, window: str, step: Any) -> Any:
        def made(*args: Any, **options: Any) -> Any:
            self.before(window)
            return step(*args, **options)

        return made


def environment(who: str, chances: dict[str, float], notes: Path) -> dict[str, str]:
    """Return what a process is started with, so that it dies; its notes are by who it is."""
    said = " ".join(f"{window}={chance}" for window, chance in chances.items())
    return {CHANCES: said, NOTES: str(notes / f"{who}.deaths")}


def counted(notes: Path) -> Counter[str]:
    """Return how many died, by who they were and before what."""
    deaths = Counter[str]()
    for file in notes.glob("*.deaths"):
        deaths.update(f"{file.stem} before {window}" for window in file.read_text().split())
    return deaths

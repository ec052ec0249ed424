"""Exploring a model: all states that can be reached, breadth first, and the shortest way to a bad one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

P = TypeVar("P")
S = TypeVar("S")


def explore(
    steps: Callable[[P, S], Iterator[tuple[str, S]]], protocol: P, first: S, is_bad: Callable[[S], bool]
) -> tuple[int, list[str] | None]:
    """Return how many states there are, and the shortest trace to a bad one; None if there is none."""
    came_from: dict[S, tuple[S, str] | None] = {first: None}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        if is_bad(state):
            trace = []
            while (origin := came_from[state]) is not None:
                state, name = origin
                trace.append(name)
            return len(came_from), trace[::-1]
        for name, after in steps(protocol, state):
            if after not in came_from:
                came_from[after] = (state, name)
                queue.append(after)
    return len(came_from), None

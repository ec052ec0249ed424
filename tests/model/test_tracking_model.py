"""No interleaving leaves memory with an old value, or a reader asleep; without any one of the parts some do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from .explore import explore
from .tracking import (
    Alone,
    AloneState,
    Memory,
    MemoryState,
    Reader,
    Waiting,
    WaitingState,
    alone_steps,
    is_old_for_good,
    is_older_than_proven,
    memory_steps,
    sleeps_for_good,
    waiting_steps,
)

MEMORY_PARTS = [field.name for field in dataclasses.fields(Memory)]
ALONE_PARTS = [field.name for field in dataclasses.fields(Alone)]
WAITING_PARTS = [field.name for field in dataclasses.fields(Waiting)]
#: One read and all that may happen to it; two reads of which nothing is lost.
FILLS = [MemoryState(readers=(Reader(),)), MemoryState(losses=0, evictions=0, pings=0)]
#: All that may happen to one waiting reader, and to one whose slot moves meanwhile.
WAITS = [WaitingState(), WaitingState(moves=1, asks_again=3, losses=0)]


def is_bad(state: MemoryState) -> bool:
    return is_older_than_proven(state) or is_old_for_good(state)


def without(protocol: Any, part: str) -> Any:
    return dataclasses.replace(protocol, **{part: not getattr(protocol, part)})


@pytest.mark.parametrize("first", FILLS, ids=["one read", "two reads"])
def test_no_interleaving_leaves_memory_behind(first: MemoryState) -> None:
    states, trace = explore(memory_steps, Memory(), first, is_bad)

    assert trace is None
    assert states > 5_000


@pytest.mark.parametrize("part", MEMORY_PARTS)
def test_each_part_of_memory_is_needed(part: str) -> None:
    _, trace = explore(memory_steps, without(Memory(), part), FILLS[0], is_bad)

    assert trace is not None


@pytest.mark.parametrize(
    "first", [WAITS[0], pytest.param(WAITS[1], marks=pytest.mark.heavy)], ids=["slots stay", "slots move"]
)
def test_no_interleaving_leaves_a_reader_asleep(first: WaitingState) -> None:
    states, trace = explore(waiting_steps, Waiting(), first, sleeps_for_good)

    assert trace is None
    assert states > 500


@pytest.mark.parametrize("part", WAITING_PARTS)
def test_each_part_of_waiting_is_needed(part: str) -> None:
    protocol = without(Waiting(), part)

    assert any(explore(waiting_steps, protocol, first, sleeps_for_good)[1] is not None for first in WAITS)


def test_memory_alone_answers_with_nothing_that_its_process_could_know_to_be_old() -> None:
    """Not after an answer of the store, and not for another master's time."""
    states, trace = explore(alone_steps, Alone(), AloneState(), lambda state: state.is_old)

    assert trace is None
    assert states > 500


@pytest.mark.parametrize("part", ALONE_PARTS)
def test_each_part_of_memory_alone_is_needed(part: str) -> None:
    _, trace = explore(alone_steps, without(Alone(), part), AloneState(), lambda state: state.is_old)

    assert trace is not None

"""No interleaving reads what was invalidated; without any one of the protocol's parts some do."""

from __future__ import annotations

import dataclasses

import pytest

from .explore import explore
from .protocol import Protocol, State, is_kept_waiting, is_loaded_twice, is_violated, start, steps

#: What would show that a part about warming is missing: two load together, or somebody waits for what nobody loads.
WARMING = ("takes_what_is_warmed", "spares_what_has_begun", "begin_asks_for_the_lease")
QUICK = (
    "quick_writes_ask_for_the_lease",
    "quick_writes_ask_who_has_begun",
    "quick_loads_compare_with_their_claim",
    "marks_ask_for_the_lease",
)
PARTS = [field.name for field in dataclasses.fields(Protocol) if field.name not in (*WARMING, *QUICK)]
#: Nothing happens but claims, one of them by who warms: whatever goes wrong then is warming's fault.
CALM = start(loaders=3, warmers=1, invalidators=0, expiries=0, evictions=0, crashes=0, collections=0)


def test_no_interleaving_is_violated() -> None:
    states, trace = explore(steps, Protocol(), start(loaders=2, invalidators=1, collections=1), is_violated)

    assert trace is None
    assert states > 5_000


def test_no_interleaving_with_a_replica_that_lags_is_violated() -> None:
    """An old value may be stored stale; it is never fresh."""
    scene = start(loaders=2, invalidators=1, expiries=0, evictions=0, collections=0, lags=True)
    states, trace = explore(steps, Protocol(), scene, is_violated)

    assert trace is None
    assert states > 5_000


@pytest.mark.parametrize("collections", [0, pytest.param(1, marks=pytest.mark.heavy)])
def test_no_interleaving_with_loads_that_fail_is_violated(collections: int) -> None:
    """A failure, or a row that is not there, is no older than what was acknowledged either."""
    scene = start(loaders=2, invalidators=1, expiries=1, evictions=0, collections=collections, failures=1)
    states, trace = explore(steps, Protocol(), scene, is_violated)

    assert trace is None
    assert states > 5_000


@pytest.mark.heavy
def test_no_interleaving_of_two_invalidations_is_violated() -> None:
    scene = start(loaders=2, invalidators=2, expiries=0, evictions=0, collections=0)
    states, trace = explore(steps, Protocol(), scene, is_violated)

    assert trace is None
    assert states > 100_000


@pytest.mark.parametrize(("loaders", "invalidators", "lost"), [(2, 1, 0), (2, 1, 1), (1, 2, 0)])
def test_no_interleaving_of_joined_steps_is_violated(loaders: int, invalidators: int, lost: int) -> None:
    """One server has all keys: a message waits from the claim on, also where the claim's reply was lost."""
    scene = start(loaders=loaders, invalidators=invalidators, collections=0, is_joined=True, lost=lost)
    states, trace = explore(steps, Protocol(), scene, is_violated)

    assert trace is None
    assert states > 2_000


@pytest.mark.parametrize(
    "what",
    [
        {"lost": 1},
        {"repeats": 1},
        {"failures": 1},
        {"repeats": 1, "by_key": 1},
        {"loaders": 1, "invalidators": 2, "by_key": 1},
        pytest.param({"loaders": 3, "repeats": 1, "by_key": 1}, marks=pytest.mark.heavy),
    ],
    ids=str,
)
def test_no_interleaving_of_quick_loads_is_violated(what: dict[str, int]) -> None:
    """Their claim's snapshot and its token are all they have, marked or not, also where a message comes twice."""
    scene = start(**{"loaders": 2, "invalidators": 1, "collections": 0, **what}, is_joined=True, is_quick=True)
    states, trace = explore(steps, Protocol(), scene, is_violated)

    assert trace is None
    assert states > 2_000


@pytest.mark.parametrize("part", QUICK)
def test_every_part_of_quick_loads_is_needed(part: str) -> None:
    mutant = dataclasses.replace(Protocol(), **{part: False})
    by_key = 0 if part == "quick_loads_compare_with_their_claim" else 1
    scene = start(invalidators=1, expiries=0, collections=1, is_joined=True, is_quick=True, repeats=1, by_key=by_key)

    assert explore(steps, mutant, scene, is_violated)[1] is not None, f"without {part} nothing goes wrong"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_needed(part: str) -> None:
    """The shortest trace that shows it is in the message of the assertion, should it ever grow."""
    mutant = dataclasses.replace(Protocol(), **{part: False})
    lags = part.startswith("holds_off")

    fails = "failures" in part
    scene = start(
        loaders=1, invalidators=1 if lags else 2, expiries=0, evictions=1, collections=1, lags=lags, failures=fails
    )
    _, trace = explore(steps, mutant, scene, is_violated)

    assert trace is not None, f"without {part} nothing goes wrong"
    assert len(trace) <= 16, trace


@pytest.mark.parametrize("collections", [0, pytest.param(1, marks=pytest.mark.heavy)])
def test_no_interleaving_with_warming_is_violated(collections: int) -> None:
    """A lease that is taken before it has begun is like one that was never claimed."""
    states, trace = explore(
        steps, Protocol(), start(loaders=2, warmers=1, invalidators=1, collections=collections), is_violated
    )

    assert trace is None
    assert states > 5_000


def test_warming_makes_nobody_wait_and_loads_nothing_twice() -> None:
    def is_bad(state: State) -> bool:
        return is_violated(state) or is_loaded_twice(state) or is_kept_waiting(Protocol(), state)

    assert explore(steps, Protocol(), CALM, is_bad)[1] is None


@pytest.mark.parametrize("part", WARMING)
def test_every_part_of_warming_is_needed(part: str) -> None:
    mutant = dataclasses.replace(Protocol(), **{part: False})

    def is_bad(state: State) -> bool:
        return is_loaded_twice(state) or is_kept_waiting(mutant, state)

    assert explore(steps, mutant, CALM, is_bad)[1] is not None, f"without {part} nothing goes wrong"


def test_a_load_can_always_be_written_again() -> None:
    """Nothing is safe because it does nothing: from a cold start an entry of the newest version can be reached."""

    def is_served(state: State) -> bool:
        return state.entry is not None and state.entry == state.acknowledged == 1

    for lags in (False, True):
        assert (
            explore(steps, Protocol(), start(loaders=2, invalidators=1, crashes=0, lags=lags), is_served)[1] is not None
        )

"""No interleaving of two releases, or of two numbers of shards, reads what was invalidated; each part is needed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from .explore import explore
from .rolling import Own, OwnState, Shards, ShardsState, is_old, own_steps, serves_old, shards_steps


def without(protocol: Any, part: str) -> Any:
    return dataclasses.replace(protocol, **{part: False})


def test_what_a_process_loads_for_itself_ends_with_its_tags() -> None:
    states, trace = explore(own_steps, Own(), OwnState(), serves_old)

    assert trace is None
    assert states > 2_000


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(Own)])
def test_each_part_of_own_loads_is_needed(part: str) -> None:
    _, trace = explore(own_steps, without(Own(), part), OwnState(), serves_old)

    assert trace is not None, f"without {part} nothing goes wrong"


def test_own_values_are_served_at_all() -> None:
    """Nothing is safe because it does nothing: beside the newest entry there can be an own value of the newest rows."""

    def is_served(state: OwnState) -> bool:
        return state.entry is not None and state.own == ((1, 1), state.entry[1]) and state.acknowledged == (1, 1)

    assert explore(own_steps, Own(), OwnState(), is_served)[1] is not None


def test_an_invalidation_covers_more_shards_than_its_process_has() -> None:
    states, trace = explore(shards_steps, Shards(), ShardsState(), is_old)

    assert trace is None
    assert states > 200


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(Shards)])
def test_each_part_of_shards_is_needed(part: str) -> None:
    _, trace = explore(shards_steps, without(Shards(), part), ShardsState(), is_old)

    assert trace is not None, f"without {part} nothing goes wrong"

"""A declared loader as an object: like the function that it is made of, wherever Python treats functions alike."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from cacheworkers import Cache, Config, DeclarationError, Load

cache = Cache(Config(testing=True, redis_url="redis://127.0.0.1:1/0", store_timeout=0.05))


@cache.loader()
def doubled(load: Load, n: int, times: int = 2) -> int:
    """Return a multiple of a number."""
    return n * times


@cache.batch_loader(name="shop.squares")
def squares(load: Load, keys: list[int]) -> dict[int, int]:
    return {key: key**2 for key in keys}


def test_it_survives_pickle_and_copy() -> None:
    """By its name, as a function does: into processes, and with settings that hold it."""
    for each in (doubled, squares):
        for again in (pickle.loads(pickle.dumps(each)), copy.copy(each), copy.deepcopy(each)):
            assert again is each


def test_a_pool_of_processes_reads_by_it() -> None:
    """Each process has a loader of its own, by the import of its module."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(doubled.get, [1, 2])) == [2, 4]


def test_it_is_described_as_its_function() -> None:
    assert (doubled.__module__, doubled.__qualname__, doubled.__doc__) == (
        __name__,
        "doubled",
        "Return a multiple of a number.",
    )
    assert list(inspect.signature(doubled).parameters) == ["load", "n", "times"]


@pytest.mark.parametrize("tags", ["product", lambda n: ["product"]])
def test_tags_that_are_no_templates_are_refused(tags: Any) -> None:
    with pytest.raises(DeclarationError, match=r"tags of odd must be a tuple of templates, got .*load\.tag"):

        @cache.loader(tags=tags)
        def odd(load: Load, n: int) -> int:
            return n

"""Two releases of one loader side by side: each reads values of its own, and neither causes a storm of loads."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
from collections.abc import Callable
from typing import Any, Optional

import msgspec
import pydantic
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cacheworkers import Cache, Load, LoadError
from cacheworkers.core.schema_fingerprint import NO_FINGERPRINT, fingerprint_of, fits
from cacheworkers.events import LoadRefused, OtherRelease
from cacheworkers.ops.cli import get
from cacheworkers.ops.output import as_text
from cacheworkers.testing.servers import wait_until


class Rank(enum.IntEnum):
    FIRST = 1


class Cost(msgspec.Struct):
    id: int
    cost: int = 1


class Price(msgspec.Struct):
    id: int
    price: int = 1


class DearCost(msgspec.Struct, omit_defaults=True):
    id: int
    cost: int = 2


class Strict(pydantic.BaseModel, extra="forbid"):
    id: int


class WiderStrict(pydantic.BaseModel, extra="forbid"):
    id: int
    price: int = 1


class Status(enum.Enum):
    OPEN = "open"


class MoreStatus(enum.Enum):
    OPEN = "open"
    PAID = "paid"


class Tree(msgspec.Struct):
    leaves: list[Tree]
    parent: Tree | None = None


#: Annotations of a loader's releases, with a value of each.
SHAPES: dict[str, tuple[Any, Any]] = {
    "Struct": (Cost, Cost(1)),
    "a field renamed": (Price, Price(1)),
    "another default": (DearCost, DearCost(1)),
    "model": (Strict, Strict(id=1)),
    "a field added": (WiderStrict, WiderStrict(id=1)),
    "Enum": (Status, Status.OPEN),
    "a member added": (MoreStatus, MoreStatus.PAID),
    "int": (int, 5),
    "none": (Any, {"id": 1}),
    "text of an instant": (str, "2026-01-31T00:00:00"),
    "instant": (datetime.datetime, datetime.datetime(2026, 1, 31)),
    "list": (list[int], [1]),
    "tuple": (tuple[int, ...], (1,)),
    "set": (set[int], {1}),
    "frozenset": (frozenset[int], frozenset({1})),
    "fields of two types": (dict[str, str | list[int]], {"id": [1]}),
    "fields of two other types": (dict[str, datetime.time | tuple[int, ...]], {"id": (1,)}),
    "optional": (int | None, 5),
}


class Release:
    """One release: its cache, its loader, and how often that ran."""

    def __init__(self, cache: Cache, annotation: Any, value: Any, **policy: Any) -> None:
        self.cache = cache
        self.value = value
        self.loads = 0
        self.database = {1: value}

        def product(load: Any, id: int) -> Any:
            self.loads += 1
            load.tag(*self.more_tags)
            if not self.stores:
                load.no_store()
            return self.database[1]

        self.more_tags: tuple[str, ...] = ()
        self.stores = True
        product.__annotations__["return"] = annotation
        self.product = cache.loader(name="product", fresh_for=300, jitter=0, **policy)(product)

    def has_workers_of(self, other: Release) -> None:
        """Let another release's workers take this one's messages."""
        self.cache._runtime.workers._run_loads = other.cache._runtime.run_loads


@pytest.mark.parametrize("l1_entries", [0, 100])
@pytest.mark.parametrize(("old", "new"), [(a, b) for a in SHAPES for b in SHAPES if a != b])
def test_each_release_reads_its_own_values_with_few_loads(
    make_cache: Callable[..., Cache], old: str, new: str, l1_entries: int
) -> None:
    first, second = (Release(make_cache(l1_entries=l1_entries), *SHAPES[each]) for each in (old, new))
    first.has_workers_of(second)

    for _ in range(5):
        for release in (first, second):
            for found in (release.product.get(1), release.product.get_many([1])[1]):
                assert found == release.value and type(found) is type(release.value)

    assert first.loads <= 1 and second.loads == 1


@given(st.sampled_from(list(SHAPES)), st.sampled_from(list(SHAPES)))
def test_shapes_differ_where_annotations_do(one: str, other: str) -> None:
    fingerprints = [fingerprint_of(SHAPES[each][0], {"id": int}) for each in (one, other)]

    assert fits(*fingerprints) is (one == other)
    assert fits(fingerprints[0], NO_FINGERPRINT) and fits(NO_FINGERPRINT, fingerprints[0])


def test_a_type_within_itself_has_a_shape() -> None:
    assert fits(fingerprint_of(Tree, {"id": Tree}), fingerprint_of(Tree, {"id": Tree}))
    assert fingerprint_of(int | None, {}) == fingerprint_of(Optional[int], {})  # noqa: UP045  # the same, written so


def test_names_of_classes_and_docstrings_are_no_part_of_a_shape() -> None:
    def made(name: str, doc: str) -> Any:
        return msgspec.defstruct(name, [("title", int)], namespace={"__doc__": doc})

    assert fingerprint_of(made("View", "One."), {"id": int}) == fingerprint_of(made("View", "Another."), {"id": int})
    assert fingerprint_of(msgspec.defstruct("View", [("title", int)]), {}) != fingerprint_of(
        msgspec.defstruct("View", [("name", int)]), {}
    )


@pytest.mark.parametrize(
    ("old", "new", "argument"),
    [
        (str, datetime.date, "2026-01-31"),
        (str, bytes, "YWJj"),
        (str, datetime.datetime, "2026-01-31T00:00:00"),
        (str, datetime.time, "07:00:00"),
        (str, decimal.Decimal, "7"),
        (int, Rank, 1),
        (int | None, int, 1),
    ],
)
def test_a_call_whose_parameter_has_another_type_never_meets_an_old_value(
    make_cache: Callable[..., Cache], old: Any, new: Any, argument: Any
) -> None:
    """The text of both calls is the same, and to its loader each means something else."""
    loaders = []
    for annotation in (old, new):

        def shown(load: Any, at: Any) -> str:
            return repr(at)

        shown.__annotations__.update(at=annotation, **{"return": str})
        loaders.append(make_cache().loader(name="shown", fresh_for=300, jitter=0)(shown))

    for _ in range(2):
        for loader, annotation in zip(loaders, (old, new), strict=True):
            given = argument if annotation is not bytes else b"abc"
            assert loader.get(given) == repr(msgspec.convert(argument, annotation, strict=False))


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("by", ["tag of both", "tag of the second's data"])
def test_an_invalidation_reaches_what_a_release_has_loaded_for_itself(
    make_cache: Callable[..., Cache], by: str, mode: Any
) -> None:
    """By a tag that only its own value has, too: the other release's entry is not in that tag's set."""
    first = Release(make_cache(), int, 1, tags=("products",), stale_for=0)
    second = Release(make_cache(), str, "one", tags=("products",), stale_for=0)
    second.more_tags = ("brand:7",)
    assert first.product.get(1) == 1 and second.product.get(1) == "one"
    first.database[1], second.database[1] = 2, "two"

    second.cache.invalidate("products" if by == "tag of both" else "brand:7", mode=mode)

    wait_until(lambda: first.product.get(1) == 2)  # another process's memory: the push takes a moment
    assert second.product.get(1) == "two"


def test_an_invalidation_during_a_release_s_own_load_is_not_lost(make_cache: Callable[..., Cache]) -> None:
    first, writer = Release(make_cache(), int, 1), make_cache()
    assert first.product.get(1) == 1
    database = {1: "old"}
    second = make_cache()

    @second.loader(name="product", fresh_for=300, tags=("brand:7",))
    def product(load: Any, id: int) -> str:
        found = database[1]
        if found == "old":
            database[1] = "new"
            writer.invalidate("brand:7")
        return found

    product.get(1)

    assert product.get(1) == "new"


def test_another_release_s_entry_is_reported_once(make_cache: Callable[..., Cache], events: list[Any]) -> None:
    first, second = Release(make_cache(), int, 1), Release(make_cache(), str, "one", l1_for=0)
    first.product.get(1)
    noted: list[tuple[str, float]] = []
    second.cache._ports.note_other_release = lambda *what: noted.append(what)

    for _ in range(3):
        second.product.read(1)
        second.product.get_json(1)

    [(loader, age)] = noted
    assert loader == "product" and 0 <= age < 60

    assert events.count(OtherRelease("product", "product[1]")) == 1
    assert second.product.peek(1) is None and first.product.peek(1).value == 1
    found = second.cache.explain("product[1]")
    assert "another return type" in found.problem
    assert found.verdict == "serve what this process has loaded for itself: the store has another release's"


def test_the_command_get_says_that_another_release_has_stored_it(make_cache: Callable[..., Cache]) -> None:
    first, second = Release(make_cache(), int, 1), Release(make_cache(), str, "one")
    first.product.get(1)

    done = CliRunner().invoke(get, ["product[1]"], obj=(second.cache, as_text))

    assert done.exit_code == 1
    assert "the entry of product[1] is of a release with another return type" in done.output


def test_a_failed_load_beside_another_release_s_entry_is_logged(
    make_cache: Callable[..., Cache], caplog: pytest.LogCaptureFixture
) -> None:
    """No worker has logged its traceback: this process alone knows it."""
    Release(make_cache(), int, 1).product.get(1)
    cache = make_cache()

    @cache.loader(fresh_for=300)
    def product(load: Load, n: int) -> str:
        raise ValueError("boom here")

    with pytest.raises(LoadError, match="boom here"):
        product.get(1)

    [record] = [each for each in caplog.records if "load of product[1] failed" in each.getMessage()]
    assert "boom here" in str(record.exc_info)


@pytest.mark.parametrize("stores", [True, False])
def test_who_reads_together_shares_what_one_has_loaded_for_this_release(
    make_cache: Callable[..., Cache], stores: bool
) -> None:
    """Also what is for those alone who wait for it."""
    first, second = Release(make_cache(), int, 1), Release(make_cache(l1_entries=0), str, "one")
    second.stores = stores
    first.product.get(1)
    client = second.cache._ports.store.link.client()

    def looks() -> int:
        return int(client.info("commandstats")["cmdstat_get"]["calls"])

    async def main() -> list[str]:
        return await asyncio.gather(*(second.product.aget(1) for _ in range(50)))

    before = looks()

    assert asyncio.run(main()) == ["one"] * 50
    assert (second.loads, looks() - before < 25) == (1, True)


def swap(make_cache: Callable[..., Cache], functions: list[Callable[..., str]]) -> list[Any]:
    return [make_cache().loader(name="price", fresh_for=300)(function) for function in functions]


def by_product(load, product_id: int, shop_id: int = 1) -> str:  # type: ignore[no-untyped-def]
    return f"product {product_id}, shop {shop_id}"


def by_shop(load, shop_id: int, product_id: int = 1) -> str:  # type: ignore[no-untyped-def]
    return f"product {product_id}, shop {shop_id}"


def renamed(load, customer_id: int, shop_id: int = 1) -> str:  # type: ignore[no-untyped-def]
    return f"customer {customer_id}, shop {shop_id}"


def narrowed(load, product_id: int) -> str:  # type: ignore[no-untyped-def]
    return f"product {product_id}, every shop"


SIGNATURES = [by_product, by_shop, renamed, narrowed]


@pytest.mark.parametrize("old", SIGNATURES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("new", SIGNATURES, ids=lambda each: each.__name__)
def test_changed_parameters_never_meet_another_call_s_value(
    make_cache: Callable[..., Cache], old: Any, new: Any
) -> None:
    before, after = swap(make_cache, [old, new])
    calls = [(2,), (1,)] if narrowed in (old, new) else [(1, 2), (2, 1)]

    for arguments in (*calls, *calls):
        assert before.get(*arguments) == old(None, *arguments)
        assert after.get(*arguments) == new(None, *arguments)


@pytest.mark.parametrize("change", ["added", "removed", "no such loader"])
def test_readers_whom_no_worker_can_serve_load_immediately(
    make_cache: Callable[..., Cache], events: list[Any], change: str
) -> None:
    """A worker of another release takes the message and cannot read it: nobody waits until `wait_for` ends."""
    workers, readers = make_cache(), make_cache()
    theirs, ours = {"added": (narrowed, by_product), "removed": (by_product, narrowed)}.get(change, (None, by_product))
    if theirs is not None:
        workers.loader(name="price")(theirs)
    price = readers.loader(name="price", fresh_for=300, wait_for=20)(ours)
    readers._runtime.workers._run_loads = workers._runtime.run_loads
    refused: list[tuple[str, str]] = []
    readers._ports.note_refused = lambda *what: refused.append(what)

    found = price.read(1)

    assert found.value == ours(None, 1) and found.waited < 10
    assert price.read(1).tier in ("l1", "store")
    [event] = [each for each in events if isinstance(each, LoadRefused)]
    assert refused == [(event.loader, event.reason)] and event.loader == "price"

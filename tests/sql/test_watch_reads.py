"""Cached look-ups inside a transaction: they disturb nobody's unit of work, nor another cache's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Load
from cacheworkers.flows.transaction_read import _touching
from sql.conftest import Base, Label, Product, Shop


@pytest.fixture
def lamps(shop: Shop) -> Any:
    """A look-up that has nothing to do with products; warm or not."""

    @shop.cache.loader(tags=("lamps",), fresh_for=300)
    def lamps(load: Load) -> int:
        return load.session.scalar(select(func.count()).select_from(Label)) or 0

    return lamps


@pytest.mark.parametrize("is_warm", [True, False])
def test_a_half_built_object_is_not_flushed(shop: Shop, lamps: Any, is_warm: bool) -> None:
    if is_warm:
        lamps.get()
    with shop.sessions() as session:
        product = Product(price=1)
        session.add(product)
        product.category_id = lamps.get()
        assert product in session.new


def test_nor_is_one_of_what_the_look_up_reads(shop: Shop) -> None:
    """A required column is still empty: the flush would fail."""
    shop.add(1)
    with shop.sessions() as session:
        product = session.get_one(Product, 1)
        product.category_id = None  # type: ignore[assignment]
        assert shop.price.get(1) == 10
        assert product in session.dirty


def test_what_is_complete_and_touched_is_seen(shop: Shop) -> None:
    @shop.cache.loader(tags=("category:{category_id}",), fresh_for=300)
    def size(load: Load, category_id: int) -> int:
        return load.session.query(Product).filter_by(category_id=category_id).count()

    assert size.get(1) == 0
    with shop.sessions() as session:
        session.add(Product(id=1, category_id=1, price=1))
        assert size.get(1) == 1
        assert size.read(2).tier == "load"


def test_a_session_that_only_waits_for_its_rollback_is_no_transaction(shop: Shop, lamps: Any) -> None:
    shop.add(1)
    with shop.sessions() as session:
        session.add(Product(id=1, category_id=1, price=1))
        with pytest.raises(IntegrityError):
            session.flush()
        assert (lamps.get(), shop.price.get(1)) == (0, 10)
        with pytest.raises(PendingRollbackError):
            session.execute(select(1))


def test_a_dirty_session_of_one_cache_is_nothing_to_another(make_cache: Callable[..., Cache], tmp_path: Path) -> None:
    made = []
    for number, name in enumerate(("shop", "archive"), 1):
        engine = create_engine(f"sqlite:///{tmp_path}/{name}.db")
        Base.metadata.tables["label"].create(engine)
        sessions = sessionmaker(engine)
        cache = make_cache(namespace=name, sessions=sessions)
        cache.outbox.create(engine)
        with sessions.begin() as session:
            session.add(Label(id=1, name=name))
        writers = sessionmaker(engine)
        cache.watch(writers, {Label: ["label:{id}"]})

        @cache.loader(tags=("label:{label_id}",), fresh_for=300, name=f"label{number}")
        def label(load: Load, label_id: int) -> str:
            return load.session.get_one(Label, label_id).name

        made.append((cache, writers, label))
    (_, writers, _), (archive, _, archived) = made

    with writers() as session:
        session.get_one(Label, 1).name = "new"
        session.flush()
        assert archived.get(1) == "archive"
        assert archived.get_many([1]) == {1: "archive"}
        archive.invalidate("label:1")


def test_what_a_loader_raises_on_the_reader_s_session_reaches_the_reader_as_it_is(shop: Shop) -> None:
    class SoldOut(Exception):
        pass

    @shop.cache.loader(tags=("category:{category_id}",), fresh_for=300)
    def size(load: Load, category_id: int) -> int:
        raise SoldOut

    with shop.sessions() as session:
        session.add(Product(id=1, category_id=1, price=1))
        with pytest.raises(SoldOut):
            size.get(1)


class Open:
    """An open transaction, with what it has changed already flushed."""

    def __init__(self, *tags: str, has_unknown: bool = False, is_usable: bool = True) -> None:
        self.tags, self.has_unknown, self.is_usable = frozenset(tags), has_unknown, is_usable
        self.unflushed = self
        self.is_complete = self.can_flush = True


def test_a_read_is_of_the_transaction_that_has_touched_it_or_of_the_newest_that_may_have() -> None:
    other, older, newer = Open("page:2"), Open(has_unknown=True), Open(has_unknown=True)
    broken = Open(has_unknown=True, is_usable=False)
    known = Open("page:1")

    def touching(*dirty: Open) -> Open | None:
        return _touching([(each, each) for each in dirty], frozenset({"page:1"}))

    assert touching(other, broken) is None
    assert touching(other, broken, newer, older) is newer
    assert touching(newer, older, known) is known

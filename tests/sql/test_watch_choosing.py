"""Choosing what invalidates: columns that matter or do not, how, and all classes by their keys."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event

from cacheworkers import ConfigError
from sql.conftest import Base, Label, Product, Shop, labels

MAPPING = {Product: ["product:{id}", "category:{category_id}"], Label: ["label:{id}"]}


def reprice(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        session.get_one(Product, 1).price += 1


def move(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        session.get_one(Product, 1).category_id += 1


def test_a_tag_may_name_its_columns(unwatched: Shop) -> None:
    """Its own template's columns always matter, and so does that a row comes or goes."""
    unwatched.add(1)
    unwatched.cache.watch(unwatched.sessions, MAPPING, columns={"category:{category_id}": ["slug"]})

    reprice(unwatched)
    move(unwatched)
    with unwatched.sessions.begin() as session:
        session.delete(session.get_one(Product, 1))

    assert unwatched.invalidated() == [
        {"product:1"},
        {"product:1", "category:1", "category:2"},
        {"product:1", "category:2"},
    ]


def test_a_function_may_have_columns_too(unwatched: Shop) -> None:
    unwatched.add(1)
    unwatched.cache.watch(unwatched.sessions, {Product: lambda row: [f"product:{row.id}"]}, columns={Product: ["slug"]})

    reprice(unwatched)

    assert unwatched.invalidated() == []


def test_a_change_of_ignored_columns_is_none(unwatched: Shop) -> None:
    """No tag, no look at the row, and no read past the cache."""
    unwatched.add(1)
    unwatched.price.get(1)
    unwatched.cache.watch(unwatched.sessions, MAPPING, ignore={Product: ["price"]})
    statements: list[str] = []
    event.listen(unwatched.engine, "before_cursor_execute", lambda c, cursor, text, *_: statements.append(text))

    with unwatched.sessions.begin() as session:
        session.get_one(Product, 1).price += 1
        session.flush()
        assert unwatched.price.read(1).tier in ("l1", "store")

    assert not any("FOR NO KEY UPDATE" in text or "INSERT" in text for text in statements)
    assert unwatched.invalidated() == []


@pytest.mark.parametrize(
    "mode", ["soft", {Product: "soft"}, {"product:{id}": "soft", "category:{category_id}": "soft"}]
)
def test_tags_may_be_invalidated_softly(unwatched: Shop, mode: Any) -> None:
    unwatched.add(1)
    unwatched.cache.watch(unwatched.sessions, MAPPING, mode=mode)

    reprice(unwatched)

    [event] = [each for each in unwatched.events if type(each).__name__ == "Invalidated"]
    assert (set(event.tags), event.mode) == ({"product:1", "category:1"}, "soft")


def test_tags_given_by_hand_may_be_soft(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        shop.cache.invalidate("deals", session=session, mode="soft")
        shop.cache.invalidate("offers", session=session)

    found = {event.tags: event.mode for event in shop.events if type(event).__name__ == "Invalidated"}
    assert found == {("deals",): "soft", ("offers",): "hard"}
    with shop.sessions() as session, pytest.raises(ConfigError, match='"hard" or "soft"'):
        shop.cache.invalidate("deals", session=session, mode="reload")


def test_all_classes_by_their_keys(unwatched: Shop) -> None:
    unwatched.cache.watch(unwatched.sessions, Base)

    with unwatched.sessions.begin() as session:
        session.add(Product(id=1, category_id=7, price=1, labels=[Label(id=2, name="new")]))

    assert unwatched.invalidated() == [{"product:1", "label:2", "product_label:1:2"}]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"columns": {"nothing:{id}": ["price"]}}, "nothing:{id}"),
        ({"columns": {Product: ["prize"]}}, "prize"),
        ({"columns": {Product: "price"}}, "price"),
        ({"ignore": {labels: ["label_id"]}}, "product_label"),
        ({"ignore": {Product: ["prize"]}}, "prize"),
        ({"mode": "lazy"}, "lazy"),
        ({"mode": {Product: "reload"}}, "reload"),
    ],
)
def test_what_is_not_there_is_named(unwatched: Shop, options: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        unwatched.cache.watch(unwatched.sessions, MAPPING, **options)
    unwatched.cache.watch(unwatched.sessions, MAPPING)  # nothing was left half-way

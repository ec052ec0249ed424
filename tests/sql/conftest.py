"""A watched shop on a Postgres database of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Engine, ForeignKey, Table, create_engine, func
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from cacheworkers import AsyncLoad, Cache, Load
from cacheworkers.testing import Postgres


class Base(DeclarativeBase):
    pass


labels = Table(
    "product_label",
    Base.metadata,
    Column("product_id", ForeignKey("product.id"), primary_key=True),
    Column("label_id", ForeignKey("label.id"), primary_key=True),
)


class Label(Base):
    __tablename__ = "label"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    category_id: Mapped[int]
    price: Mapped[int]
    slug: Mapped[str | None] = mapped_column(server_default=func.concat("p", func.floor(1.0)))
    labels: Mapped[list[Label]] = relationship(secondary=labels)


class Unrelated(Base):
    __tablename__ = "unrelated"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Shop:
    """A cache that watches, its sessions, and what it emitted."""

    def __init__(self, make_cache: Callable[..., Cache], url: str, events: list[Any]) -> None:
        self.events = events
        self.engine: Engine = create_engine(url)
        self.cache = cache = make_cache(
            sessions=sessionmaker(self.engine), async_sessions=async_sessionmaker(create_async_engine(url))
        )
        Base.metadata.create_all(self.engine)
        cache.outbox.create(self.engine)
        self.sessions: sessionmaker[Session] = sessionmaker(self.engine)
        self.async_engine = create_async_engine(url)
        self.async_sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(self.async_engine)
        self.mapping: dict[Any, Any] = {
            Product: lambda row: (f"product:{row.id}", f"category:{row.category_id}"),
            labels: lambda row: (f"label:{row.label_id}",),
        }

        @cache.loader(tags=("product:{product_id}",), fresh_for=300, l1_for=60)
        def price(load: Load, product_id: int) -> int | None:
            product = load.session.get(Product, product_id)
            if product is None:
                return None
            load.tag(f"category:{product.category_id}")
            return product.price

        @cache.loader(tags=("category:{category_id}",), fresh_for=300)
        async def count(load: AsyncLoad, category_id: int) -> int:
            from sqlalchemy import select

            found = await load.session.scalar(
                select(func.count()).select_from(Product).where(Product.category_id == category_id)
            )
            return found or 0

        self.price, self.count = price, count

    def watch(self) -> Shop:
        self.cache.watch(self.sessions, self.mapping)
        self.cache.watch(self.async_sessions, self.mapping)
        return self

    def add(self, *ids: int, category_id: int = 1) -> None:
        """Add products, priced ten times their id, past everything that watches."""
        with Session(self.engine) as session, session.begin():
            session.add_all(Product(id=number, category_id=category_id, price=number * 10) for number in ids)

    def waiting(self) -> int:
        with self.engine.connect() as connection:
            return self.cache.outbox.waiting(connection)

    def invalidated(self) -> list[set[str]]:
        """The tags of each invalidation so far."""
        return [set(event.tags) for event in self.events if type(event).__name__ == "Invalidated"]


@pytest.fixture
def unwatched(make_cache: Callable[..., Cache], database_url: str, events: list[Any]) -> Iterator[Shop]:
    shop = Shop(make_cache, database_url, events)
    yield shop
    shop.engine.dispose()
    shop.async_engine.sync_engine.dispose(close=False)


@pytest.fixture
def shop(unwatched: Shop) -> Shop:
    return unwatched.watch()


@pytest.fixture(scope="module")
def standby() -> Iterator[str]:
    """URL of a database on a hot standby."""
    with Postgres() as primary:
        primary.create_database("shop")
        primary._end(primary.ending)
        data = primary.dir / "data"
        (data / "standby.signal").touch()
        if data.owner() != "root":
            shutil.chown(data / "standby.signal", data.owner(), data.group())
        primary.start()
        yield primary.url("shop")

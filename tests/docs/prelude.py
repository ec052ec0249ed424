"""What a page takes for granted: a shop's database with products, and a cache with two loaders where it makes none."""

from __future__ import annotations

import os
import threading
from typing import Any

import msgspec
from celery import Celery
from sqlalchemy import Column, ForeignKey, Integer, Table, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from cacheworkers import Cache, Config, Load
from cacheworkers.sql.outbox.outbox import Outbox

from .blocks import Block

#: The rows that pages ask for, as the layout makes them.
ROWS = 'Product(id=n, name=f"product {n}", category_id=7, price=n * 10) for n in range(1, 101)'


class Base(DeclarativeBase):
    """The tables of the shop."""


class Product(Base):
    """Something to buy; the price is in cents."""

    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    category_id: Mapped[int]
    price: Mapped[int]


class Label(Base):
    """What products may have in common."""

    __tablename__ = "label"
    id: Mapped[int] = mapped_column(primary_key=True)


class Category(Base):
    """A page of products."""

    __tablename__ = "category"
    id: Mapped[int] = mapped_column(primary_key=True)


class User(Base):
    """Somebody who is seen at each request."""

    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    last_seen: Mapped[int]


product_label = Table(
    "product_label",
    Base.metadata,
    Column("product_id", ForeignKey("product.id"), primary_key=True),
    Column("label_id", Integer, primary_key=True),
)


class ProductView(msgspec.Struct, frozen=True):
    """A product as pages show it."""

    id: int
    name: str
    category_id: int
    price: int

    @classmethod
    def from_row(cls, row: Product) -> ProductView:
        """Return a row as what is cached."""
        return cls(row.id, row.name, row.category_id, row.price)


def models() -> dict[str, Any]:
    """Return the shop's database, without a cache."""
    engine = create_engine(os.environ["DATABASE_URL"])
    Base.metadata.create_all(engine)
    Outbox(Config.from_env().namespace).create(engine)
    with Session(engine) as session:
        session.add_all(eval(f"[{ROWS}]", {"Product": Product}))
        session.commit()
    return {
        "engine": engine,
        "Base": Base,
        "Product": Product,
        "Label": Label,
        "Category": Category,
        "User": User,
        "ProductView": ProductView,
        "product_label": product_label,
        "Session": sessionmaker(engine),
        "sessionmaker": sessionmaker,
        "celery": Celery("shop", broker="memory://", task_always_eager=True),  # a page's second cache is refused
        "Cache": Cache,
        "Config": Config,
        "Load": Load,
    }


def shop() -> dict[str, Any]:
    """Return the shop, with a cache that loads on threads of this process."""
    names = models()
    cache = Cache(Config.from_env(), sessions=names["Session"])

    @cache.loader(fresh_for=300, stale_for=60, tags=("product:{product_id}",))
    def product(load: Load, product_id: int) -> ProductView | None:
        row = load.session.get(Product, product_id)
        if row is None:
            return None
        load.tag(f"category:{row.category_id}")
        return ProductView.from_row(row)

    @cache.batch_loader(fresh_for=300, stale_for=60, tags=("product:{key}",))
    def products(load: Load, keys: list[int]) -> dict[int, ProductView | None]:
        rows = load.session.scalars(select(Product).where(Product.id.in_(keys)))
        return {row.id: ProductView.from_row(row) for row in rows}

    stop = threading.Event()
    stop.set()
    return {
        **names,
        "cache": cache,
        "product": product,
        "products": products,
        "ids": [*range(1, 101)],
        "stop": stop,
        "ask_the_bank": lambda currency, timeout: 1.0,
    }


def of(page: str) -> dict[str, Any]:
    """Return what a page takes for granted."""
    if page in SELF_CONTAINED:
        return {}
    return models() if page.startswith(DECLARING) else shop()


#: Names of a reader's project, which a page that takes them for granted has in its text.
PROJECT = {"engine", "Session", "celery", "cache", "product", "products", "ids", "stop", "ask_the_bank"}
PROJECT |= {"Base", "Product", "Label", "Category", "User", "ProductView", "product_label"}
#: Pages whose own fixtures start the servers.
STARTING = ("docs/how-to/testing.md",)
#: Pages whose first block makes all that the others use.
SELF_CONTAINED = ("docs/how-to/cookbook.md",)
#: Pages that make a cache and loaders of their own.
DECLARING = ("docs/how-to/fastapi", "docs/how-to/flask", "docs/how-to/migrate")
#: Modules of the layout; a page's names stand for what they have.
LAYOUT_MODULES = ("shop", "shop.cache", "shop.catalog", "shop.celeryapp", "shop.database", "shop.models", "shop.web")

DJANGO_SETTINGS = """
import os

from sqlalchemy import make_url

url = make_url(os.environ["DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.database,
        "USER": url.username,
        "HOST": url.query.get("host"),
        "OPTIONS": {"application_name": "mysite"},
    }
}
INSTALLED_APPS += ["shop"]
"""
DJANGO_MODELS = """
from django.db import models


class Product(models.Model):
    name = models.CharField(max_length=100)
    price = models.IntegerField()
    category_id = models.IntegerField()
"""
#: What a page's reader has done before: a Django project with one app, whose first migration is made.
DJANGO = "docs/how-to/django.md"
SCENES = {
    DJANGO: [
        Block(DJANGO, 0, "bash", "python -m django startproject mysite .\npython -m django startapp shop"),
        Block(DJANGO, 0, "python", DJANGO_SETTINGS, "adds", "mysite/settings.py"),
        Block(DJANGO, 0, "python", DJANGO_MODELS, "file", "shop/models.py"),
        Block(DJANGO, 0, "bash", "python manage.py makemigrations shop"),
    ]
}

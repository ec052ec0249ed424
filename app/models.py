"""The shop's tables."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import ForeignKey, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables of the shop."""


class Category(Base):
    """What products are sorted into."""

    __tablename__ = "category"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Product(Base):
    """Something to buy."""

    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    category_id: Mapped[int] = mapped_column(ForeignKey("category.id"), index=True)


class Price(Base):
    """What a product costs now, and in the sale."""

    __tablename__ = "price"
    product_id: Mapped[int] = mapped_column(ForeignKey("product.id"), primary_key=True)
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    sale_amount: Mapped[Decimal | None] = mapped_column(Numeric(12, 2), index=True)


class Stock(Base):
    """How many there are."""

    __tablename__ = "stock"
    product_id: Mapped[int] = mapped_column(ForeignKey("product.id"), primary_key=True)
    quantity: Mapped[int]

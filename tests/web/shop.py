"""A small shop whose prices are files, so that these tests can change them under a server in another process."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from cacheworkers import Cache, Config, Load
from cacheworkers.web import HttpPolicy

PRICES = Path(os.environ["PRICES"])
POLICY = HttpPolicy(max_age=5, max_stale=30, none_is_404=True, surrogate_keys=True, retry_after=3)
cache = Cache(Config.from_env(store_timeout=5.0, backoff_for=20.0))


class ProductView(msgspec.Struct, frozen=True):
    """A product."""

    id: int
    name: str
    amount: int


@cache.loader(fresh_for=300, stale_for=60, jitter=0, early=0, wait_for=10, tags=("product:{product_id}", "oak tables"))
def product(load: Load, product_id: int) -> ProductView | None:
    """One product; None if it has no price."""
    try:
        amount = (PRICES / str(product_id)).read_text()
    except FileNotFoundError:
        return None
    return ProductView(product_id, "Stühle", int(amount))


@cache.loader(load_for=30, wait_for=0.05, on_timeout="raise")
def slow(load: Load) -> int:
    """Takes until somebody writes to the pipe; readers wait for less."""
    return int((PRICES / "pipe").read_text())

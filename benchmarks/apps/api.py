"""The product API that every peer serves; `PEER` in the environment names who caches it.

GET /products/{id} answers with a JSON payload that the peer keeps as bytes, so that none pays for another's encoding;
PUT /products/{id}/price commits a new price, and lets the peer drop what it keeps in the way its documentation shows.
"""

from __future__ import annotations

import os
from decimal import Decimal
from typing import Annotated, Any

import psutil
from fastapi import Body, FastAPI, HTTPException, Response
from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from app.models import Price, Product, Stock
from benchmarks.apps.peers import PEERS, Database, payload_of

engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=20, max_overflow=20)
sessions = async_sessionmaker(engine, expire_on_commit=False)
STATEMENT = (
    select(Product.id, Product.name, Product.category_id, Price.amount, Price.sale_amount, Stock.quantity)
    .join(Price, Price.product_id == Product.id)
    .join(Stock, Stock.product_id == Product.id)
)


async def load(product_id: int) -> bytes:
    """Return a product's JSON from the database."""
    async with sessions() as session:
        return payload_of((await session.execute(STATEMENT.where(Product.id == product_id))).one_or_none())


peer = PEERS[os.environ["PEER"]](
    Database(os.environ["DATABASE_URL"], os.environ["REDIS_URL"], STATEMENT, sessions, load)
)
app = FastAPI()


async def read(product_id: int) -> Response:
    """Return one product."""
    body = await peer.get(product_id)
    if body == b"null":
        raise HTTPException(404)
    return Response(body, media_type="application/json")


def read_in_thread(product_id: int) -> Response:
    """Return one product, from one of FastAPI's threads."""
    body = peer.get_in_thread(product_id)
    if body == b"null":
        raise HTTPException(404)
    return Response(body, media_type="application/json")


app.get("/products/{product_id}")(read_in_thread if hasattr(peer, "get_in_thread") else read)


@app.put("/products/{product_id}/price")
async def put_price(product_id: int, amount: Annotated[int, Body(embed=True)]) -> dict[str, Any]:
    """Commit a new price, in cents, and drop what is cached of the product."""
    async with sessions() as session:
        price = await session.get(Price, product_id)
        if price is None:
            raise HTTPException(404)
        price.amount = Decimal(amount) / 100
        await session.commit()
    await peer.changed(product_id)
    return {"id": product_id, "amount": amount}


@app.get("/memory")
async def memory() -> dict[str, float]:
    """Return this process's resident memory, MB."""
    return {"mb": psutil.Process().memory_info().rss / 1e6}

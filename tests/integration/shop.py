"""A small shop whose products real Celery workers load from a real Postgres."""

from __future__ import annotations

import os
import time

from celery import Celery
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Config, Load
from cacheworkers.ops.doctor import log_when_workers_start
from cacheworkers.ops.metrics import Metrics, serve_when_workers_start

app = Celery("shop", broker=os.environ.get("BROKER_URL", os.environ["REDIS_URL"]))
if os.environ.get("QUEUE_TYPE"):
    app.conf.update(
        task_default_queue_type=os.environ["QUEUE_TYPE"], task_create_missing_queue_type=os.environ["QUEUE_TYPE"]
    )
engine = create_engine(os.environ["DATABASE_URL"])
cache = Cache(Config.from_env(store_timeout=5.0), celery=app, sessions=sessionmaker(engine), hook=Metrics())

if os.environ.get("USE_ENGINE_EARLY"):
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def _price(load: Load, product_id: int) -> int:
    load.session.execute(text("SELECT pg_sleep(:s)"), {"s": float(os.environ.get("LOAD_TIME", "0"))})
    found = load.session.execute(text("SELECT price FROM product WHERE id = :id"), {"id": product_id}).scalar_one()
    return int(found)


@cache.loader(fresh_for=300, stale_for=60, load_for=8, wait_for=8, tags=("product:{product_id}",))
def product(load: Load, product_id: int) -> int:
    return _price(load, product_id)


@cache.loader(
    fresh_for=300, load_for=float(os.environ.get("LEASE_TIME", "2")), wait_for=300, tags=("product:{product_id}",)
)
def patient(load: Load, product_id: int) -> int:
    """Its readers wait for longer than a lease lasts: a worker that dies with it costs them time, and no error."""
    return _price(load, product_id)


@cache.loader(load_for=4, wait_for=300, on_timeout="raise")
def deadly(load: Load) -> int:
    """Kills the first worker that runs it; a reader must not."""
    flag = os.environ["FLAG"]
    if not os.path.exists(flag):
        open(flag, "w").close()
        os.kill(os.getpid(), 9)
        time.sleep(60)
    return 1


@cache.loader(fresh_for=300, load_for=120, wait_for=120, on_timeout="raise")
def strict(load: Load, product_id: int) -> int:
    """Workers alone may load it, and a lease lasts as long as its readers wait."""
    return _price(load, product_id)


@cache.loader(load_for=8, wait_for=8)
def writes(load: Load) -> int:
    load.session.execute(text("UPDATE product SET price = 0"))
    return 1


@cache.loader(load_for=2, wait_for=300, on_timeout="raise")
def poison(load: Load) -> int:
    """Kills every worker that runs it; readers must not."""
    os.kill(os.getpid(), 9)
    return 1


@cache.loader(fresh_for=300, stale_for=60, load_for=2, wait_for=0.3, tags=("gauge:{n}",))
def gauge(load: Load, n: int) -> int:
    """Takes as long as its environment says; readers wait for less."""
    if os.environ.get("STARTED"):
        open(os.environ["STARTED"], "w").close()
    load.session.execute(text("SELECT pg_sleep(:s)"), {"s": float(os.environ.get("GAUGE_TIME", "0"))})
    found = load.session.execute(text("SELECT price FROM product WHERE id = :n"), {"n": n}).scalar_one()
    return int(found)


@cache.loader(fresh_for=300, load_for=60, wait_for=0.3)
def held(load: Load, n: int) -> int:
    """Says that it has begun, and goes on when the test says so; readers wait for less."""
    open(os.environ["STARTED"], "w").close()
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.01)
    return int(load.session.execute(text("SELECT price FROM product WHERE id = :n"), {"n": n}).scalar_one())


@app.task(name="reads")
def reads(product_id: int) -> None:
    """The user's: reads the cache within a worker, perhaps in its only slot."""
    value = patient.get(product_id)
    with engine.begin() as connection:
        connection.execute(text("UPDATE product SET price = :v WHERE id = -1"), {"v": value})


if os.environ.get("OWN_METRICS_PORT"):
    serve_when_workers_start(cache, int(os.environ["OWN_METRICS_PORT"]))
if os.environ.get("LOG_DIAGNOSIS"):
    log_when_workers_start(cache)

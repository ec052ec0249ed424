"""A shop on Django: one file with settings, a model, views, and a walk through every way to change a row."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator

import django
import msgspec
from django.conf import settings
from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.orm import sessionmaker

url = make_url(os.environ["DATABASE_URL"])
settings.configure(
    DEBUG=True,
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="tests",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.database,
            "USER": url.username,
            "HOST": url.query.get("host") or url.host,
            "PORT": url.port or "",
        }
    },
)
django.setup()

from django.db import close_old_connections, connection, connections, models, transaction  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.test import AsyncClient, Client  # noqa: E402
from django.urls import path  # noqa: E402

from cacheworkers import Cache, Config, Load, LoadCall  # noqa: E402
from cacheworkers.testing.servers import wait_until  # noqa: E402


class Product(models.Model):
    price = models.IntegerField()

    class Meta:
        app_label = "shop"


class ProductView(msgspec.Struct, frozen=True):
    id: int
    price: int


def database_url() -> URL:
    given = connections["default"].get_connection_params()
    address = (given.get("user"), given.get("password"), given.get("host"), given.get("port"), given.get("dbname"))
    return URL.create("postgresql+psycopg", *address)


loads: list[str] = []


@contextlib.contextmanager
def in_django(call: LoadCall) -> Iterator[None]:
    close_old_connections()
    try:
        yield
    finally:
        loads.append(str(call))
        close_old_connections()


engine = create_engine(database_url())
cache = Cache(Config.from_env(), sessions=sessionmaker(engine), around_load=in_django)
triggers = cache.triggers({"shop_product": ["product:{id}"]})


@cache.loader(fresh_for=300, tags=("product:{product_id}",))
def product(load: Load, product_id: int) -> ProductView | None:
    row = Product.objects.filter(pk=product_id).values("id", "price").first()
    return None if row is None else ProductView(**row)


def view(request: HttpRequest, product_id: int) -> JsonResponse:
    return JsonResponse(msgspec.to_builtins(product.get(product_id)))


async def aview(request: HttpRequest, product_id: int) -> JsonResponse:
    return JsonResponse(msgspec.to_builtins(await product.aget(product_id)))


urlpatterns = [path("<int:product_id>", view), path("async/<int:product_id>", aview)]


def price(number: int) -> int | None:
    found = product.get(number)
    return None if found is None else found.price


def sees(number: int, expected: int | None, what: str) -> None:
    wait_until(lambda: price(number) == expected)
    print(what)


def change_and_read() -> None:
    assert price(1) is None
    Product.objects.create(id=1, price=1)
    sees(1, 1, "create")
    row = Product.objects.get(pk=1)
    row.price = 2
    row.save()
    sees(1, 2, "save")
    Product.objects.filter(pk=1).update(price=3)
    sees(1, 3, "update")
    assert price(2) is None
    Product.objects.bulk_create([Product(id=2, price=20), Product(id=3, price=30)])
    sees(2, 20, "bulk_create")
    Product.objects.bulk_update([Product(id=2, price=21)], ["price"])
    sees(2, 21, "bulk_update")
    Product.objects.filter(pk=2).delete()
    sees(2, None, "delete")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE shop_product SET price = 4 WHERE id = 1")
    sees(1, 4, "raw")
    with transaction.atomic():
        Product.objects.filter(pk=1).update(price=5)
        assert price(1) == 4
        transaction.on_commit(lambda: print("on_commit") if cache.invalidate("product:1") else None)
    assert price(1) == 5
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        Product.objects.filter(pk=1).update(price=6)
        raise ZeroDivisionError
    sees(1, 5, "rollback")
    assert Client().get("/1").json() == {"id": 1, "price": 5}
    print("view")
    assert asyncio.run(AsyncClient().get("/async/1")).json() == {"id": 1, "price": 5}
    print("aview")


def main() -> None:
    with connection.schema_editor() as editor:
        editor.create_model(Product)
    with engine.begin() as installing:
        cache.outbox.create(installing)
        triggers.install(installing)
    stop = threading.Event()
    draining = threading.Thread(target=cache.drain_until, args=(stop,))
    draining.start()
    try:
        change_and_read()
    finally:
        stop.set()
        draining.join()
    assert any(call == "product[1]" for call in loads), loads
    cache.close()


if __name__ == "__main__":
    main()

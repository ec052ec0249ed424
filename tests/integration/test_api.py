"""The product API in this process, on a real database; loads on threads of the real dispatcher's fallback."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cacheworkers.testing import Valkey


@pytest.fixture(scope="module")
def api(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The app, with no workers and no broker: readers load what they miss."""
    postgres = request.getfixturevalue("postgres")
    patch = pytest.MonkeyPatch()
    with Valkey() as valkey:
        patch.setenv("REDIS_URL", valkey.url)
        patch.setenv("BROKER_URL", "redis://127.0.0.1:1/0")
        patch.setenv("DATABASE_URL", postgres.create_database("api"))
        for name in [name for name in sys.modules if name.startswith("app.")]:
            patch.delitem(sys.modules, name)
        importlib.import_module("app.seed").main(["--products", "300"])
        module = importlib.import_module("app.api")
        yield module.app
        importlib.import_module("app.shop").cache.close()
        importlib.import_module("app.database").engine.dispose()
    patch.undo()


def ask(app: Any, path: str, method: str = "GET", body: bytes = b"", **asked: str) -> tuple[int, dict[str, str], Any]:
    """Send one request to the ASGI app; return status, headers and the decoded body."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    asked = {"host": "127.0.0.1:8000", **asked}
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in asked.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode("latin-1"), "headers": lines}
    asyncio.run(app(scope, receive, send))
    headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], headers, msgspec.json.decode(sent[1]["body"] or b"null")


def test_product_is_the_same_with_and_without_the_cache(api: Any) -> None:
    status, headers, cached = ask(api, "/products/7")

    assert (status, headers["content-type"]) == (200, "application/json")
    assert cached == ask(api, "/uncached/products/7")[2] == ask(api, "/products/7")[2]


def test_new_price_shows_immediately_everywhere(api: Any) -> None:
    product = ask(api, "/products/8")[2]
    category = f"/categories/{product['category_id']}"
    ask(api, category)

    assert ask(api, "/products/8/price", "PUT", b'{"amount": 4321}')[0] == 200

    assert ask(api, "/products/8")[2]["amount"] == 4321
    shown = {each["id"]: each["amount"] for each in ask(api, category)[2]["products"]}
    assert shown.get(8, 4321) == 4321


def test_a_browser_asks_for_what_it_has_and_gets_it_once(api: Any) -> None:
    """Every reuse is revalidated, by a 304 while the product stays the same."""
    first = ask(api, "/products/9")[1]

    status, headers, _ = ask(api, "/products/9", if_none_match=first["etag"])
    head = ask(api, "/products/9", "HEAD")[1]
    ask(api, "/products/9/price", "PUT", b'{"amount": 1234}')

    assert (status, headers["cache-control"]) == (304, "public, no-cache")
    assert head["content-length"] == first["content-length"]
    assert ask(api, "/products/9", if_none_match=first["etag"])[0] == 200


def test_category_has_its_count_and_deals_are_in_the_sale(api: Any) -> None:
    page = ask(api, "/categories/1?page=1")[2]

    assert page["total"] >= len(page["products"]) > 0
    assert all(each["sale_amount"] is not None for each in ask(api, "/deals")[2])


@pytest.mark.parametrize(
    ("path", "method", "body", "status", "names"),
    [
        ("/products/x", "GET", b"", 422, "product id"),
        ("/products/0", "GET", b"", 422, "product id"),
        ("/products/99999", "GET", b"", 404, "/products/99999"),
        ("/nowhere", "GET", b"", 404, "/nowhere"),
        ("/products/1", "POST", b"", 405, "GET"),
        ("/categories/1?page=no", "GET", b"", 422, "page"),
        ("/categories/1?page=\xff", "GET", b"", 422, "page"),
        ("/products/1/price", "PUT", b"{}", 422, "amount"),
        ("/products/1/price", "PUT", b'{"amount": -5}', 422, "-5"),
        ("/products/99999/price", "PUT", b'{"amount": 5}', 404, "99999"),
        ("/products/00000000000199999999999", "GET", b"", 422, "product id"),
        ("/products/1", "PUT", b'{"price": 1.005}', 422, "price"),
        ("/products/1", "PUT", b'{"category_id": 9999}', 422, "category 9999"),
        ("/products/1", "PUT", b"[" * 900, 422, "name"),
        ("/products/1", "PUT", b" " * 2000, 413, "1000"),
    ],
)
def test_errors_are_problem_details(api: Any, path: str, method: str, body: bytes, status: int, names: str) -> None:
    """RFC 9457: status, and what is wrong with what."""
    answered, headers, problem = ask(api, path, method, body)

    assert (answered, headers["content-type"]) == (status, "application/problem+json")
    assert problem["status"] == status and names in problem["detail"]


def test_a_product_leaves_one_listing_and_enters_another(api: Any) -> None:
    """Name, price and category change in one PUT; the product and the pages of both categories show it."""
    before = ask(api, "/products/11")[2]
    left, entered = before["category_id"], before["category_id"] % 3 + 1
    counts = [ask(api, f"/categories/{each}")[2]["total"] for each in (left, entered)]

    status, _, changed = ask(
        api,
        "/products/11",
        "PUT",
        msgspec.json.encode({"name": "Lamp", "price": 12.5, "category_id": entered}),
    )

    assert (status, changed) == (200, {**before, "name": "Lamp", "amount": 1250, "category_id": entered})
    assert ask(api, "/products/11")[2] == changed
    assert [ask(api, f"/categories/{each}")[2]["total"] for each in (left, entered)] == [counts[0] - 1, counts[1] + 1]


@pytest.mark.parametrize("path", ["/products/1", "/products/1/price"])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example", "origin": "http://evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
    ids=["rebound name", "rebound name and origin", "other site", "sandboxed frame"],
)
def test_another_site_changes_nothing(api: Any, path: str, headers: dict[str, str]) -> None:
    before = ask(api, "/products/1")[2]

    status = ask(api, path, "PUT", b'{"amount": 1}' if path.endswith("price") else b'{"price": 1}', **headers)[0]

    assert (status, ask(api, "/products/1")[2]) == (403, before)


def test_alive_and_ready_are_two_questions(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without its database is alive, and ready as long as the store answers."""
    shop = importlib.import_module("app.shop")
    monkeypatch.setattr(shop, "is_database_up", lambda: False)

    assert ask(api, "/health")[0] == 200
    assert ask(api, "/ready")[0::2] == (200, {"database": False, "store": True})
    monkeypatch.setattr(shop, "is_store_up", lambda: False)
    assert (ask(api, "/health")[0], ask(api, "/ready")[0]) == (200, 503)


def test_seed_is_the_same_each_time() -> None:
    rows = importlib.import_module("app.seed").rows

    assert rows(50) == rows(50) and rows(60)[:50] == rows(50)

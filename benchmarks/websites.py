"""What `benchmarks.http` serves: by each framework the same product, from the cache and as constant bytes."""

from __future__ import annotations

import json
import os
from typing import Any

from flask import Flask
from flask import Response as FlaskResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app import shop
from cacheworkers.web import flask, starlette

BODY = b"x" * int(os.environ["BODY_BYTES"])
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
_ANSWER = [(name.encode(), value.encode()) for name, value in json.loads(os.environ["ANSWER_HEADERS"]).items()]

respond = starlette.Responder()
respond_sync = flask.Responder()


async def constant(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Plain ASGI: the least that Python can do on this server."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": BODY})


async def constant_answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The same with all headers of a product's answer, as constants too."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": _ANSWER})
        await send({"type": "http.response.body", "body": BODY})


async def _product(request: Request) -> Response:
    return await respond(request, shop.product.aread_json, request.path_params["product_id"])


async def _constant(request: Request) -> Response:
    return Response(BODY, media_type="application/json")


by_starlette = Starlette(
    routes=[Route("/products/{product_id:int}", _product), Route("/constant/{product_id:int}", _constant)]
)
by_flask = Flask(__name__)


@by_flask.get("/products/<int:product_id>")
def _product_by_flask(product_id: int) -> FlaskResponse:
    return respond_sync(shop.product.read_json, product_id)


@by_flask.get("/constant/<int:product_id>")
def _constant_by_flask(product_id: int) -> FlaskResponse:
    return FlaskResponse(BODY, mimetype="application/json")

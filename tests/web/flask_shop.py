"""The shop by Flask."""

from __future__ import annotations

import shop
from flask import Flask, Response

from cacheworkers.web.flask import Responder

app = Flask(__name__)
respond = Responder(shop.POLICY)


@app.get("/products/<int:product_id>")
def show_product(product_id: int) -> Response:
    """One product."""
    return respond(shop.product.read_json, product_id)


@app.get("/slow")
def show_slow() -> Response:
    """What takes too long."""
    return respond(shop.slow.read_json)

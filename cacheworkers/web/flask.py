"""Responder for Flask; needs the extra `flask`."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from cacheworkers.core.extras import needs_extra
from cacheworkers.core.read_result import Read
from cacheworkers.web.http import REFUSED, HttpPolicy
from cacheworkers.web.recent_answers import RecentAnswers

with needs_extra("flask"):
    from flask import Response, request

P = ParamSpec("P")


class Responder:
    """Answers requests by a policy: `return respond(product.read_json, product_id)`, inside a view of GET."""

    def __init__(self, policy: HttpPolicy | None = None) -> None:
        self._recent = RecentAnswers(policy or HttpPolicy())

    def __call__(self, read_json: Callable[P, Read], *args: P.args, **kwargs: P.kwargs) -> Response:
        """Return the response that a loader's `read_json` makes for these arguments; 503 if it finds no value.

        400 if an argument is no value of its parameter's type, or too long.

        Raises:
            CallError: the view calls the loader with other parameters than it has.
        """
        method, path = request.method, request.path
        try:
            read = read_json(*args, **kwargs)
        except REFUSED as error:
            made = self._recent.refuse(error, method=method, path=path)
        else:
            made = self._recent.answer(
                read, method=method, path=path, if_match=_sent("If-Match"), if_none_match=_sent("If-None-Match")
            )
        # A list: given bytes, Werkzeug would count them again, and HEAD's Content-Length would be 0.
        return Response([made.body], made.status, [(name.decode(), value.decode()) for name, value in made.headers])


def _sent(name: str) -> bytes | None:
    value = request.headers.get(name)
    return None if value is None else value.encode("latin-1")

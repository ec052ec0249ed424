"""Responder for Starlette and FastAPI; needs the extra `starlette`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ParamSpec

from cacheworkers.core.extras import needs_extra
from cacheworkers.core.read_result import Read
from cacheworkers.web import asgi
from cacheworkers.web.http import HttpPolicy

with needs_extra("starlette"):
    from starlette.requests import Request
    from starlette.responses import Response

P = ParamSpec("P")


class Responder:
    """Answers requests by a policy: `return await respond(request, product.aread_json, product_id)`.

    For routes of GET and HEAD.
    """

    def __init__(self, policy: HttpPolicy | None = None) -> None:
        self._respond = asgi.Responder(policy)

    async def __call__(
        self, request: Request, aread_json: Callable[P, Awaitable[Read]], *args: P.args, **kwargs: P.kwargs
    ) -> Response:
        """Return the response that a loader's `aread_json` makes for these arguments; 503 if it finds no value.

        400 if an argument is no value of its parameter's type, or too long.

        Raises:
            CallError: the view calls the loader with other parameters than it has.
        """
        answer = await self._respond(request.scope, aread_json, *args, **kwargs)
        response = Response(answer.body, answer.status)
        # A copy: a hot entry's answer is shared, and cookies or a middleware's headers are one response's own.
        response.raw_headers = list(answer.headers)
        return response

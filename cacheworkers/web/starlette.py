"""Answers from Starlette and FastAPI; needs the extra `starlette`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ParamSpec

from starlette.requests import Request
from starlette.responses import Response

from cacheworkers.core.read import Read
from cacheworkers.web.asgi import answer_to
from cacheworkers.web.http import HttpPolicy

P = ParamSpec("P")


class Responder:
    """Answers requests by a policy: `return await respond(request, product.aread_json, product_id)`.

    For routes of GET and HEAD.
    """

    def __init__(self, policy: HttpPolicy | None = None) -> None:
        self._policy = policy or HttpPolicy()

    async def __call__(
        self, request: Request, aread_json: Callable[P, Awaitable[Read]], *args: P.args, **kwargs: P.kwargs
    ) -> Response:
        """Return the response that a loader's `aread_json` makes for these arguments; 503 if it finds no value.

        Raises:
            CallError: the arguments do not fit the loader.
        """
        status, headers, body = await answer_to(request.scope, self._policy, aread_json, *args, **kwargs)
        response = Response(body, status)
        response.raw_headers = headers
        return response

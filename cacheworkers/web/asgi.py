"""Responder for plain ASGI: what any ASGI framework, or none, builds on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ParamSpec

from cacheworkers.core.read_result import Read
from cacheworkers.web.http import REFUSED, Answer, HttpPolicy
from cacheworkers.web.recent_answers import RecentAnswers

P = ParamSpec("P")
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Responder:
    """Answers requests by a policy: `await respond(scope, product.aread_json, product_id)`, for GET and HEAD."""

    def __init__(self, policy: HttpPolicy | None = None) -> None:
        self._recent = RecentAnswers(policy or HttpPolicy())

    async def __call__(
        self,
        scope: Mapping[str, Any],
        aread_json: Callable[P, Awaitable[Read]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Answer:
        """Return the answer that a loader's `aread_json` makes for these arguments; 503 if it finds no value.

        400 if an argument is no value of its parameter's type, or too long.

        Raises:
            CallError: the view calls the loader with other parameters than it has.
        """
        try:
            read = await aread_json(*args, **kwargs)
        except REFUSED as error:
            return self._recent.refuse(error, method=scope["method"], path=scope["path"])
        return self._answer(scope, read)

    async def serve(
        self,
        scope: Mapping[str, Any],
        send: Send,
        aread_json: Callable[P, Awaitable[Read]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Send that answer; the payload's bytes go to the server as they are.

        Raises:
            CallError: the view calls the loader with other parameters than it has.
        """
        try:
            read = await aread_json(*args, **kwargs)
        except REFUSED as error:
            sent = self._recent.refuse(error, method=scope["method"], path=scope["path"])
        else:
            sent = self._answer(scope, read)
        # A copy: a hot entry's answer is shared, and what a middleware adds is one response's own.
        await send({"type": "http.response.start", "status": sent.status, "headers": list(sent.headers)})
        await send({"type": "http.response.body", "body": sent.body})

    def _answer(self, scope: Mapping[str, Any], read: Read) -> Answer:
        """Return a read's answer to a request; several lines of one precondition are one list."""
        if_match = if_none_match = None
        for name, value in scope["headers"]:
            if name == b"if-none-match":
                if_none_match = value if if_none_match is None else if_none_match + b", " + value
            elif name == b"if-match":
                if_match = value if if_match is None else if_match + b", " + value
        return self._recent.answer(read, scope["method"], scope["path"], if_match, if_none_match)

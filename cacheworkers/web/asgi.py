"""Answers over plain ASGI: what any ASGI framework, or none, builds on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ParamSpec

from cacheworkers.core.read import Read
from cacheworkers.web.http import UNAVAILABLE, Answer, HttpPolicy, answer, refusal

P = ParamSpec("P")
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def answer_to(
    scope: Mapping[str, Any],
    policy: HttpPolicy,
    aread_json: Callable[P, Awaitable[Read]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Answer:
    """Return the answer to a GET or HEAD, from what a loader's `aread_json` returns for these arguments.

    Raises:
        CallError: the arguments do not fit the loader.
    """
    method, path = scope["method"], scope["path"]
    try:
        read = await aread_json(*args, **kwargs)
    except UNAVAILABLE as error:
        return refusal(error, policy, method=method, path=path)
    return answer(read, policy, method=method, path=path, if_none_match=_if_none_match(scope["headers"]))


async def send_answer(send: Send, sent: Answer) -> None:
    """Send an answer; the payload's bytes go to the server as they are."""
    status, headers, body = sent
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _if_none_match(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the request's If-None-Match; several lines are one list."""
    lines = [value for name, value in headers if name == b"if-none-match"]
    return b", ".join(lines) if lines else None

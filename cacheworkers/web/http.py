"""A read, or why there is none, as an HTTP answer: status, headers and the payload's bytes as they are.  Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from cacheworkers.core.read_result import Read
from cacheworkers.errors import BadArgument, LoadError, LoadTimeout, Unavailable
from cacheworkers.policy import duration
from cacheworkers.web import headers as values

#: What a read raises when it has no value to give, or is asked for what no loader could have; others are mistakes.
REFUSED = (Unavailable, BadArgument)
_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPolicy:
    """What browsers and HTTP caches may do with answers.  Durations are seconds.

    An invalidation reaches every process that reads through the library, and no HTTP cache.  What one of these may
    reuse without asking, it may show for that long after an invalidation; so by default it asks each time, and an
    answer that has not changed costs a 304 without a body.

    Attributes:
        max_age: how long an answer may be reused without asking, and never longer than its entry is fresh; `math.inf`
            for as long as that.  None: `no-cache`, every reuse is revalidated.
        max_stale: how long beyond that, while it is revalidated (stale-while-revalidate) or revalidation fails
            (stale-if-error), and never longer than the entry's own periods.  Means nothing with `max_age=None`.
        is_public: proxies may keep answers too, also those to requests with Authorization; else browsers only.
        none_is_404: None, and a key that a batch loader left out, is a 404; else None is a 200 with `null`.
        surrogate_keys: send the entry's tags in Surrogate-Key, for proxies that purge by it.
        retry_after: what a 503 asks a client to wait, if no backoff says it; rounded up to whole seconds.
    """

    max_age: float | None = None
    max_stale: float = math.inf
    is_public: bool = False
    none_is_404: bool = False
    surrogate_keys: bool = False
    retry_after: float = 1.0

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: a field breaks its rule.
        """
        for name in ("max_age", "max_stale"):
            if getattr(self, name) is not None:
                duration(name, getattr(self, name), most=math.inf)
        duration("retry_after", self.retry_after, positive=True)


class Answer(msgspec.Struct, frozen=True, gc=False):
    """An HTTP response, as ASGI has it: header names in lower case."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def answer(
    read: Read,
    policy: HttpPolicy,
    *,
    method: str = "GET",
    path: str = "",
    if_match: bytes | None = None,
    if_none_match: bytes | None = None,
) -> Answer:
    """Return the answer that a read of `read_json` makes: 200, 304, 404 or 412; to HEAD without the body.

    Args:
        if_match, if_none_match: the request's headers; several of one name joined by commas.

    Raises:
        TypeError: the read carries a decoded value.
    """
    payload = read.value
    if type(payload) is not bytes:
        raise TypeError(f"an answer is made of a Read of read_json, its value is bytes; got {type(payload).__name__}")
    keys = values.surrogate_key(read) if policy.surrogate_keys else b""
    is_public = policy.is_public and keys is not None  # what cannot be purged by its tags, proxies do not keep
    cache_control = values.cache_control(read, is_public=is_public, max_age=policy.max_age, max_stale=policy.max_stale)
    headers = [
        (b"cache-control", cache_control),
        (b"age", b"%d" % read.age),
        (b"cache-status", values.cache_status(read)),
    ]
    if keys:
        headers.append((b"surrogate-key", keys))
    if policy.none_is_404 and _is_none(read):
        return _problem(404, "Not Found", f"there is nothing at {_printable(path)}", method, headers)
    tag = values.entity_tag(read)
    # Before If-None-Match, and after a 404: RFC 9110, 13.2.
    if if_match is not None and not values.matches_strongly(if_match, tag):
        refused = [(b"cache-control", values.NO_STORE), (b"cache-status", values.cache_status(read))]
        return _problem(412, "Precondition Failed", "it has none of the entity tags in If-Match", method, refused)
    headers.append((b"etag", tag))
    if if_none_match is not None and values.matches(if_none_match, tag):
        return Answer(304, headers, b"")
    headers.append(_JSON)
    headers.append((b"content-length", b"%d" % len(payload)))
    return Answer(200, headers, b"" if method == "HEAD" else payload)


def refusal(error: Unavailable | BadArgument, policy: HttpPolicy, *, method: str = "GET", path: str = "") -> Answer:
    """Return the answer to a request whose read found no value: 503 with Retry-After, or 404 for a key left out.

    400 where an argument is no value of its parameter's type, or too long: a retry is of no use.

    It does not show the error's own text, which may hold what a database said.
    """
    status = b"cacheworkers; fwd=miss; detail=%s" % type(error).__name__.encode()
    headers = [(b"cache-control", values.NO_STORE), (b"cache-status", status)]
    retry_after = policy.retry_after
    match error:
        case BadArgument():
            return _problem(
                400,
                "Bad Request",
                "a value in the request does not have the type that the loader takes",
                method,
                headers,
            )
        case LoadError(kind="KeyMissing") if policy.none_is_404:
            return _problem(404, "Not Found", f"there is nothing at {_printable(path)}", method, headers)
        case LoadError():
            detail = "it could not be loaded"
            retry_after = error.backoff_for or retry_after
        case LoadTimeout():
            detail = "it was not loaded in time"
        case _:
            detail = "the cache's store does not answer"
    headers.append((b"retry-after", b"%d" % math.ceil(retry_after)))
    return _problem(503, "Service Unavailable", detail, method, headers)


def _problem(status: int, title: str, detail: str, method: str, headers: list[tuple[bytes, bytes]]) -> Answer:
    """Return an error in the form of RFC 9457."""
    body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})
    headers += (_PROBLEM, (b"content-length", b"%d" % len(body)))
    return Answer(status, headers, b"" if method == "HEAD" else body)


def _is_none(read: Read) -> bool:
    return read.entry.is_negative if read.entry is not None else read.value == b"null"


def _printable(path: str) -> str:
    """Return a path as JSON can carry it: what a client sent may be no text at all."""
    return path.encode("utf-8", "replace").decode()

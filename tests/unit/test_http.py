"""A read as an HTTP answer: what browsers and HTTP caches, and what is asked of them."""

from __future__ import annotations

import math
import sys
from typing import Any

import msgspec
import pytest

from cacheworkers import ConfigError, Freshness, KeyMissing, LoadError, LoadTimeout, Read, StoreUnavailable
from cacheworkers.core.entry import Entry
from cacheworkers.core.envelope import digest_of
from cacheworkers.web import Answer, HttpPolicy, answer, refusal
from cacheworkers.web import recent_answers as recents

PAYLOAD = b'{"id":42,"amount":1900}'


def entry(**changes: Any) -> Entry:
    """An entry loaded at 1000: fresh for 300 s, stale for 60, kept for 100 more."""
    ends = (1000.0, 1300.0, 1360.0, 1460.0)
    made = Entry("product[42]", ("product:42",), PAYLOAD, *ends, 60.0, 0.1, 7, b"12345678", digest_of(PAYLOAD))
    return msgspec.structs.replace(made, **changes)


def read(now: float, tier: str = "l1", waited: float = 0.0, **changes: Any) -> Read:
    found = entry(**changes)
    return Read.of(now, found, found.payload, found.freshness(now), tier, waited)


def joined(now: float, waited: float) -> Read:
    """A read that waited for the load of another."""
    return msgspec.structs.replace(read(now, "store", waited), is_joined=True)


def shown(made: Answer) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in made.headers}


def test_an_answer_carries_the_payload_as_it_is() -> None:
    """200, the very bytes, and everything a browser needs to ask for less next time."""
    made = answer(read(1100.9), HttpPolicy())

    assert (made.status, made.body) == (200, PAYLOAD)
    assert made.body is entry().payload
    assert shown(made) == {
        "content-type": "application/json",
        "content-length": str(len(PAYLOAD)),
        "cache-control": "private, no-cache",
        "age": "100",
        "cache-status": "cacheworkers; hit; ttl=199; detail=l1",
        "etag": f'"{digest_of(PAYLOAD).hex()}"',
    }


@pytest.mark.parametrize(
    ("now", "options", "expected"),
    [
        (1100.9, {"max_age": math.inf}, "private, max-age=299, stale-while-revalidate=60, stale-if-error=160"),
        (1100.9, {"max_age": 5}, "private, max-age=105, stale-while-revalidate=60, stale-if-error=160"),
        (1100.9, {"max_age": 0}, "private, max-age=100, stale-while-revalidate=60, stale-if-error=160"),
        (1298.5, {"max_age": 5}, "private, max-age=299, stale-while-revalidate=60, stale-if-error=160"),
        (1310.0, {"max_age": 5}, "private, max-age=310, stale-while-revalidate=50, stale-if-error=150"),
        (1400.0, {"max_age": 5}, "private, max-age=400, stale-if-error=60"),
        (1100.0, {"max_age": 5, "max_stale": 30}, "private, max-age=105, stale-while-revalidate=30, stale-if-error=30"),
        (1100.0, {"max_age": 5, "max_stale": 0, "is_public": True}, "public, max-age=105"),
        (1100.0, {"is_public": True}, "public, no-cache"),
    ],
)
def test_caches_are_sent_what_is_left(now: float, options: dict[str, Any], expected: str) -> None:
    """max-age is Age plus what is left of the entry, or the cap; the stale periods are what is left of the entry's."""
    assert shown(answer(read(now), HttpPolicy(**options)))["cache-control"] == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (read(1100.0), "hit; ttl=200; detail=l1"),
        (read(1100.0, "store", waited=0.001), "hit; ttl=200; detail=store"),
        (read(1310.5, "store", waited=0.001), "hit; ttl=-11; detail=store"),
        (read(1000.0, "l1"), "hit; ttl=300; detail=l1"),
        (read(1000.4, "store", waited=0.5), "fwd=miss; stored; ttl=299; detail=store"),
        (joined(1000.4, waited=0.5), "fwd=miss; stored; collapsed; ttl=299; detail=store"),
        (joined(1000.9, waited=0.5), "fwd=miss; stored; collapsed; ttl=299; detail=store"),
        (read(1000.4, "load", waited=0.5), "fwd=miss; stored; ttl=299; detail=load"),
        (read(1400.0, "store", waited=0.5), "fwd=stale; ttl=-100; detail=store"),
        (read(1000.4, "load", waited=0.5, write_id=b""), "fwd=miss; detail=load"),
        (Read(PAYLOAD, Freshness.FRESH, "load", 0.0, 0), "fwd=miss; detail=load"),
    ],
)
def test_cache_status_says_what_this_cache_did(found: Read, expected: str) -> None:
    """RFC 9211: a stale hit has a negative ttl; a load that this read waited for is a miss."""
    assert shown(answer(found, HttpPolicy()))["cache-status"] == f"cacheworkers; {expected}"


@pytest.mark.parametrize("found", [read(1000.4, "load", write_id=b""), Read(PAYLOAD, Freshness.FRESH, "load", 0.0, 0)])
def test_what_was_not_stored_is_not_to_be_kept(found: Read) -> None:
    """A value that an invalidation has overtaken is good for one read, and no HTTP cache may keep it."""
    made = answer(found, HttpPolicy(max_age=math.inf, is_public=True))

    assert shown(made)["cache-control"] == "no-store"
    assert shown(made)["etag"] == f'"{digest_of(PAYLOAD).hex()}"'


@pytest.mark.parametrize("asked", ["{tag}", "W/{tag}", '"a", {tag}', '"a,b" , W/{tag},"c"', "*", " * ", '"",{tag}'])
def test_what_the_client_has_is_answered_by_a_304(asked: str) -> None:
    """304 has the headers that the 200 would have had, but for those of a body that is not there."""
    whole = answer(read(1100.0), HttpPolicy())
    tag = shown(whole)["etag"]

    made = answer(read(1100.0), HttpPolicy(), if_none_match=asked.replace("{tag}", tag).encode())

    assert (made.status, made.body) == (304, b"")
    assert set(whole.headers) - set(made.headers) == {
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(PAYLOAD)),
    }


@pytest.mark.parametrize("asked", [b"", b'"a"', b"{tag}", b'W/"a", "b"', b'"{tag}x"', b"**", b'"*"', b'"'])
def test_what_the_client_has_not_is_sent(asked: bytes) -> None:
    """Another tag, or what is no entity tag at all, matches nothing."""
    bare = digest_of(PAYLOAD).hex().encode()

    assert answer(read(1100.0), HttpPolicy(), if_none_match=asked.replace(b"{tag}", bare)).status == 200


@pytest.mark.parametrize("asked", ["{tag}", '"a", {tag}', 'W/"a",{tag}', "W/{tag}, {tag}", "*", " * "])
def test_what_if_match_names_is_sent(asked: str) -> None:
    """Then If-None-Match is asked, as if it were alone."""
    whole = answer(read(1100.0), HttpPolicy())
    sent = asked.replace("{tag}", shown(whole)["etag"]).encode()

    assert answer(read(1100.0), HttpPolicy(), if_match=sent) == whole
    assert answer(read(1100.0), HttpPolicy(), if_match=sent, if_none_match=b"*").status == 304


@pytest.mark.parametrize("asked", ["", '"a"', "W/{tag}", 'W/{tag}, "a"', "w/{tag}", '"*"', "**", '"', "{bare}"])
def test_what_if_match_does_not_name_is_a_412(asked: str) -> None:
    """RFC 9110, 13.1.1: compared strongly, before If-None-Match; no HTTP cache is to keep the refusal."""
    bare = digest_of(PAYLOAD).hex()
    sent = asked.replace("{tag}", f'"{bare}"').replace("{bare}", bare).encode()

    made = answer(read(1100.0), HttpPolicy(max_age=60), if_match=sent, if_none_match=b"*")
    to_head = answer(read(1100.0), HttpPolicy(), method="HEAD", if_match=sent)

    assert (made.status, msgspec.json.decode(made.body)["title"]) == (412, "Precondition Failed")
    assert shown(made)["content-type"] == "application/problem+json"
    assert shown(made)["cache-control"] == "no-store"
    assert (to_head.status, to_head.body) == (412, b"")


def test_a_404_stays_one_whatever_if_match_says() -> None:
    """RFC 9110, 13.2.1: preconditions count only where the answer would be a success."""
    nothing = read(1005.0, payload=b"null", digest=digest_of(b"null"), is_negative=True)

    assert answer(nothing, HttpPolicy(none_is_404=True), if_match=b'"a"').status == 404


def test_equal_payloads_have_one_tag_whoever_loaded_them() -> None:
    """A reload that brings the same bytes costs the client nothing; other bytes have another tag."""
    again = read(2000.0, created=1999.0, write_id=b"87654321", seq=9)
    other = read(1100.0, payload=b"{}", digest=digest_of(b"{}"))

    tags = [shown(answer(found, HttpPolicy()))["etag"] for found in (read(1100.0), again, other)]

    assert tags[0] == tags[1] != tags[2]


def test_head_is_answered_without_the_body() -> None:
    """HEAD has GET's headers, Content-Length among them."""
    made = answer(read(1100.0), HttpPolicy(), method="HEAD")

    assert made.headers == answer(read(1100.0), HttpPolicy()).headers
    assert made.body == b""


def test_tags_become_surrogate_keys() -> None:
    """A space, a comma, a percent sign or a letter of no ASCII in a tag cannot be taken for anything else."""
    tags = ("product:42", "category:oak tables", "100%", "a,b", "Stühle")

    made = shown(answer(read(1100.0, tags=tags), HttpPolicy(surrogate_keys=True)))

    assert made["surrogate-key"] == "product:42 category:oak%20tables 100%25 a%2Cb St%C3%BChle"


def test_what_cannot_be_purged_is_not_public() -> None:
    """Tags too long for a header are left out, and proxies may not keep the answer."""
    policy = HttpPolicy(surrogate_keys=True, is_public=True)
    tags = tuple(f"product:{number}" for number in range(2000))

    made = shown(answer(read(1100.0, tags=tags), policy))

    assert "surrogate-key" not in made
    assert made["cache-control"] == "private, no-cache"
    assert shown(answer(read(1100.0, tags=()), policy))["cache-control"] == "public, no-cache"


@pytest.mark.parametrize(
    "found",
    [
        read(1005.0, payload=b"null", digest=digest_of(b"null"), is_negative=True),
        Read(b"null", Freshness.FRESH, "load", 0.0, 0),
    ],
)
def test_none_is_a_404_if_so_wanted(found: Read) -> None:
    """None is JSON's null, or there is nothing at this path; a 404 may be kept like anything else."""
    plain = answer(found, HttpPolicy())
    made = answer(found, HttpPolicy(none_is_404=True), path="/products/42", if_none_match=b"*")

    assert (plain.status, plain.body) == (200, b"null")
    assert made.status == 404
    assert shown(made)["content-type"] == "application/problem+json"
    assert shown(made)["cache-control"] == shown(plain)["cache-control"]
    assert msgspec.json.decode(made.body) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is nothing at /products/42",
    }


@pytest.mark.parametrize(
    ("error", "retry_after", "detail"),
    [
        (LoadError("product", "product[42]", "ValueError", "secret", 4.2), "5", "it could not be loaded"),
        (LoadError("product", "product[42]", "ValueError", "secret"), "3", "it could not be loaded"),
        (LoadTimeout("secret"), "3", "it was not loaded in time"),
        (StoreUnavailable("secret"), "3", "the cache's store does not answer"),
        (KeyMissing("product", "product[42]", "KeyMissing", "secret"), "3", "it could not be loaded"),
    ],
)
def test_no_value_is_a_503_that_says_when_to_come_back(error: Any, retry_after: str, detail: str) -> None:
    """RFC 9457, with the backoff's rest in whole seconds where it is known; and nothing of the error's own text."""
    made = refusal(error, HttpPolicy(retry_after=2.5))

    assert made.status == 503
    assert shown(made) == {
        "content-type": "application/problem+json",
        "content-length": str(len(made.body)),
        "cache-control": "no-store",
        "cache-status": f"cacheworkers; fwd=miss; detail={type(error).__name__}",
        "retry-after": retry_after,
    }
    assert msgspec.json.decode(made.body) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": detail,
    }
    assert refusal(error, HttpPolicy(retry_after=2.5), method="HEAD").body == b""


@pytest.mark.parametrize("kind", [KeyMissing, LoadError])
def test_a_key_left_out_is_a_404_if_so_wanted(kind: type[LoadError]) -> None:
    """Also when another process's failure is known from the store, which keeps the error's name alone."""
    made = refusal(kind("product", "product[42]", "KeyMissing", ""), HttpPolicy(none_is_404=True), path="/products/42")

    assert made.status == 404
    assert "retry-after" not in shown(made)


def test_a_hot_entry_is_answered_with_the_same_headers_for_a_second() -> None:
    """Made once while no number in it changes; not for another entry, another path's 404, or a request with a tag."""
    policy = HttpPolicy(none_is_404=True)
    recent = recents.RecentAnswers(policy)
    asked: dict[str, Any] = {"method": "GET", "path": "/a", "if_none_match": None}
    first, second = entry(), entry(payload=b"{}", digest=digest_of(b"{}"), write_id=b"second..")
    nothing = entry(payload=b"null", digest=digest_of(b"null"), is_negative=True, write_id=b"nothing.")

    def ask(found: Entry, now: float, **changes: Any) -> Answer:
        made = Read.of(now, found, found.payload, Freshness.FRESH, "l1", 0.0)
        return recent.answer(made, **{**asked, **changes})

    assert ask(first, 1100.1).headers is ask(first, 1100.9).headers
    assert ask(first, 1100.9).body is first.payload
    assert ask(second, 1100.9) == answer(Read.of(1100.9, second, b"{}", Freshness.FRESH, "l1", 0.0), policy)
    assert ask(first, 1100.9).headers is not ask(first, 1101.1).headers
    assert ask(first, 1100.4).headers == ask(first, 1100.9).headers  # the store's clock was measured again
    softened = entry(fresh_until=1200.0)
    assert b"ttl=99;" in dict(ask(softened, 1100.9).headers)[b"cache-status"]
    assert ask(first, 1100.5, if_none_match=b"*").status == 304
    tag = dict(ask(first, 1100.5).headers)[b"etag"]
    same = ask(first, 1100.5, if_none_match=tag)
    assert same == answer(Read.of(1100.5, first, PAYLOAD, Freshness.FRESH, "l1", 0.0), policy, if_none_match=tag)
    assert same.status == 304 and same.headers is ask(first, 1100.9, if_none_match=tag).headers
    assert ask(first, 1100.5, if_none_match=b'"other"').status == 200
    assert ask(first, 1100.5, if_match=b'"other"').status == 412
    assert ask(first, 1100.5, method="HEAD").body == b""
    assert b"/a" in ask(nothing, 1100.5).body and b"/b" in ask(nothing, 1100.5, path="/b").body


def test_a_stale_entry_is_answered_by_its_own_age() -> None:
    """How long it may be served while it is loaded changes between the seconds of its age."""
    recent, stale = recents.RecentAnswers(HttpPolicy(max_age=5)), entry(stale_until=1360.5)

    def left(now: float) -> bool:
        found = Read.of(now, stale, stale.payload, Freshness.STALE, "l1", 0.0)
        made = dict(recent.answer(found, method="GET", path="/").headers)
        return b"stale-while-revalidate=50" in made[b"cache-control"]

    assert [left(1310.2), left(1310.8)] == [True, False]


def test_an_answer_keeps_no_payload() -> None:
    """What memory has dropped for want of room is not kept by the responder beside it."""
    recent = recents.RecentAnswers(HttpPolicy())
    payload = b'"%s"' % (b"x" * 10_000)
    found = entry(payload=payload, digest=digest_of(payload))
    held = sys.getrefcount(payload)

    for _ in range(2):
        made = recent.answer(
            Read.of(1100.0, found, payload, Freshness.FRESH, "l1", 0.0), method="GET", path="/", if_none_match=None
        )
        assert made.body is payload
        del made

    assert recent._kept
    assert sys.getrefcount(payload) == held


def test_recent_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for a moment must not grow with the number of entries."""
    monkeypatch.setattr(recents, "_MAX_CALLS", 10)
    recent = recents.RecentAnswers(HttpPolicy())

    for number in range(100):
        found = Read.of(1100.0, entry(call=f"product[{number}]"), PAYLOAD, Freshness.FRESH, "l1", 0.0)
        recent.answer(found, method="GET", path="/", if_none_match=None)

        assert len(recent._kept) <= 10


def test_a_decoded_value_makes_no_answer() -> None:
    """Encoding it again would make other bytes than its tag says: the error says which read to use."""
    found = Read.of(1100.0, entry(), {"id": 42}, Freshness.FRESH, "l1", 0.0)

    with pytest.raises(TypeError, match=r"read_json.*got dict"):
        answer(found, HttpPolicy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_age": -1}, "max_age must be >= 0 seconds, got -1"),
        ({"max_stale": math.nan}, "max_stale must be a number >= 0 seconds, got nan"),
        ({"retry_after": 0}, "retry_after must be > 0 seconds, got 0"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HttpPolicy(**options)


def test_a_503_is_logged_once_for_its_loader_and_cause(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body says nothing of what a database said; the web process's log has the first line, and where to look."""
    now = 100.0
    monkeypatch.setattr(recents.time, "monotonic", lambda: now)
    recent = recents.RecentAnswers(HttpPolicy(none_is_404=True))
    failed = LoadError("product", "product[42]", "ProgrammingError", "no such table\n[SQL: SELECT]")
    errors = (failed, failed, LoadTimeout("waited"), KeyMissing("product", "product[1]", "KeyMissing", ""))

    made = [recent.refuse(error, method="GET", path="/") for error in errors]
    first = [record.getMessage() for record in caplog.records]
    now += 61
    recent.refuse(failed, method="GET", path="/")

    assert [each.status for each in made] == [503, 503, 503, 404]
    assert [text.partition(";")[0] for text in first] == [
        "answered 503: load of product[42] failed with ProgrammingError: no such table",
        "answered 503: waited",
    ]
    assert len(caplog.records) == 3 and "logged the traceback" in first[0]

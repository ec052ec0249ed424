"""What HTTP caches are sent, read back as they read it: none keeps an answer for longer than it was allowed to."""

from __future__ import annotations

import math
import re
from typing import Any
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from cacheworkers import Freshness, Read
from cacheworkers.core.entry import Entry
from cacheworkers.core.envelope import digest_of
from cacheworkers.web import HttpPolicy, answer
from cacheworkers.web.headers import entity_tag, matches
from cacheworkers.web.recent_answers import RecentAnswers

SPANS = st.floats(0, 1e6)
CAPS = st.one_of(st.just(math.inf), st.floats(0, 1e6))
TAGS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
OPAQUE = st.text(st.sampled_from([chr(n) for n in (0x21, *range(0x23, 0x7F), *range(0x80, 0x100))]), max_size=9)


@st.composite
def reads(draw: Any) -> Read:
    created = draw(st.floats(1e9, 2e9))
    fresh_until = created + draw(SPANS)
    stale_until = fresh_until + draw(SPANS)
    expires_at = stale_until + draw(SPANS)
    payload = draw(st.binary(max_size=20))
    tags = tuple(draw(st.lists(TAGS, max_size=5)))
    ends = (created, fresh_until, stale_until, expires_at)
    entry = Entry("product[42]", tags, payload, *ends, 0.0, 0.0, 1, b"12345678", digest_of(payload))
    now = created + draw(st.floats(0, 4e6))
    tier = draw(st.sampled_from(["l1", "store", "load"]))
    freshness = entry.freshness(now)
    served = Freshness.LAPSED if freshness is Freshness.MISSING else freshness
    return Read.of(now, entry, payload, served, tier, draw(st.floats(0, 60)))


def directives(cache_control: str) -> dict[str, int | None]:
    """Parse Cache-Control by RFC 9111: a list of tokens, each with a number or nothing."""
    found: dict[str, int | None] = {}
    for each in cache_control.split(","):
        name, _, number = each.strip(" ").partition("=")
        assert re.fullmatch("[a-z-]+", name) and name not in found
        assert re.fullmatch("[0-9]*", number)
        found[name] = int(number) if number else None
    return found


def parameters(cache_status: str) -> dict[str, int | str | bool]:
    """Parse one member of Cache-Status as a structured field (RFC 9651): tokens, integers and plain booleans."""
    name, *rest = cache_status.split("; ")
    assert name == "cacheworkers"
    found: dict[str, int | str | bool] = {}
    for each in rest:
        key, is_given, value = each.partition("=")
        assert re.fullmatch("[a-z][a-z-]*", key) and key not in found
        if not is_given:
            found[key] = True
        elif re.fullmatch("-?[0-9]{1,15}", value):
            found[key] = int(value)
        else:
            assert re.fullmatch("[A-Za-z*][A-Za-z0-9:/!#$%&'*+.^_`|~-]*", value)
            found[key] = value
    return found


@given(reads(), CAPS, CAPS, st.booleans())
def test_no_cache_keeps_an_answer_for_longer_than_its_entry_lives(
    read: Read, max_age: float, max_stale: float, is_public: bool
) -> None:
    """RFC 9111's arithmetic on what was sent ends at the cap, or less than a second before the entry's own ends."""
    made = answer(read, HttpPolicy(max_age=max_age, max_stale=max_stale, is_public=is_public))
    headers = {name.decode(): value.decode() for name, value in made.headers}
    reported, age = directives(headers["cache-control"]), int(headers["age"])
    entry = read.entry
    assert entry is not None
    now = entry.created + read.age

    reuse_for = (reported["max-age"] or 0) - age  # as a cache computes it that has this answer immediately
    left = max(0.0, entry.fresh_until - now)
    stale_from = max(now, entry.fresh_until)
    stale_left = max(0.0, entry.stale_until - stale_from)
    error_left = max(0.0, entry.expires_at - stale_from)

    assert age <= read.age < age + 1
    assert reuse_for == math.floor(min(left, max_age))
    assert (reported.get("stale-while-revalidate") or 0) == math.floor(min(stale_left, max_stale))
    assert (reported.get("stale-if-error") or 0) == math.floor(min(error_left, max_stale))
    assert 0 not in (reported.get("stale-while-revalidate"), reported.get("stale-if-error"))
    assert ("public" in reported, "private" in reported) == (is_public, not is_public)


@given(reads())
def test_cache_status_can_be_read_and_is_of_one_mind(read: Read) -> None:
    """RFC 9211: hit or forwarded, never both; the ttl is positive exactly while the entry is fresh."""
    headers = dict(answer(read, HttpPolicy()).headers)

    reported = parameters(headers[b"cache-status"].decode())

    assert ("hit" in reported) != ("fwd" in reported)
    assert reported["detail"] == read.tier
    assert isinstance(reported["ttl"], int)
    assert (reported["ttl"] >= 0) == (read.freshness is Freshness.FRESH) or reported["ttl"] == 0
    assert (reported.get("fwd") == "stale") == (read.freshness is Freshness.LAPSED)


@given(reads(), st.lists(st.floats(0, 3), max_size=6), CAPS, st.sampled_from(["GET", "HEAD"]))
def test_recent_answers_are_what_they_would_be_if_made_again(
    read: Read, later: list[float], max_age: float, method: str
) -> None:
    """However close reads of one entry are, each answer has the seconds of its own read."""
    policy = HttpPolicy(max_age=max_age, surrogate_keys=True)
    recent = RecentAnswers(policy)
    entry = read.entry
    assert entry is not None

    for after in [0.0, *later]:
        now = entry.created + read.age + after
        freshness = entry.freshness(now)
        served = Freshness.LAPSED if freshness is Freshness.MISSING else freshness
        found = Read.of(now, entry, read.value, served, "l1", 0.0)
        for asked in (None, entity_tag(found)):
            made = recent.answer(found, method=method, path="/", if_none_match=asked)

            assert made == answer(found, policy, method=method, path="/", if_none_match=asked)


@given(st.lists(TAGS, max_size=6))
def test_surrogate_keys_are_the_tags(tags: list[str]) -> None:
    """Split at spaces and decoded they are the tags again; every character is printable ASCII."""
    entry = Entry("a", tuple(tags), b"1", 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 1, b"12345678", digest_of(b"1"))
    made = answer(Read.of(1.5, entry, b"1", Freshness.FRESH, "l1", 0.0), HttpPolicy(surrogate_keys=True))

    value = dict(made.headers).get(b"surrogate-key", b"").decode()

    assert [unquote(key) for key in value.split(" ") if key] == tags
    assert re.fullmatch("[\x20-\x7e]*", value)


@given(st.lists(st.tuples(st.booleans(), OPAQUE), max_size=5), OPAQUE, st.sampled_from([",", ", ", " ,\t"]))
def test_a_list_of_entity_tags_matches_what_is_in_it(tags: list[tuple[bool, str]], own: str, between: str) -> None:
    """RFC 9110: W/ does not count, commas inside a tag do not split it."""
    sent = between.join(("W/" if is_weak else "") + f'"{opaque}"' for is_weak, opaque in tags)

    found = matches(sent.encode("latin-1"), f'"{own}"'.encode("latin-1"))

    assert found == (own in [opaque for _, opaque in tags])


@given(st.binary(max_size=60))
def test_any_bytes_may_come_as_if_none_match(sent: bytes) -> None:
    """What a client sends breaks nothing, and matches only if it holds the tag, or is `*`."""
    tag = b'"0123456789abcdef"'

    assert matches(sent, tag) <= (tag in sent or sent.strip(b" \t") == b"*")

"""Header values for one read.  Pure: the read brings the instant at which it was made, on the store's clock.

RFC 9110 (entity tags, conditional requests), RFC 9111 and 5861 (Cache-Control, Age), RFC 9211 (Cache-Status).
"""

from __future__ import annotations

import math
import re
from urllib.parse import quote

from cacheworkers.core.entry import Freshness
from cacheworkers.core.envelope import digest_of
from cacheworkers.core.read_result import Read

NO_STORE = b"no-store"
#: Longest Surrogate-Key, bytes: what Fastly takes of one response.
MAX_SURROGATE_KEY_BYTES = 16_384
_ENTITY_TAG = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
#: As sent, with the W/ of a weak one, so that it equals no strong one.
_SENT_TAG = re.compile(rb'(?<![^ \t,])(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
#: Plain in a Surrogate-Key, beside letters, digits and `_.-~`; anything else is percent-encoded.
_PLAIN = ":/[]@$!*()+=;'"


def entity_tag(read: Read) -> bytes:
    """Return the strong entity tag of a read's JSON: equal bytes have the same, whoever loaded them and when."""
    digest = digest_of(read.value) if read.entry is None else read.entry.digest
    return b'"%s"' % digest.hex().encode()


def matches(if_none_match: bytes, tag: bytes) -> bool:
    """Return whether an If-None-Match names a strong entity tag, or is `*`; weakly compared, as GET and HEAD do.

    What is no entity tag in it matches nothing.
    """
    return if_none_match == tag or if_none_match.strip(b" \t") == b"*" or tag in _ENTITY_TAG.findall(if_none_match)


def matches_strongly(if_match: bytes, tag: bytes) -> bool:
    """Return whether an If-Match names a strong entity tag as a strong one, or is `*`.

    What is no entity tag in it matches nothing.
    """
    return if_match.strip(b" \t") == b"*" or tag in _SENT_TAG.findall(if_match)


def cache_control(read: Read, *, is_public: bool, max_age: float | None, max_stale: float) -> bytes:
    """Return what HTTP caches may do with a read, from what is left of its entry.

    A cache subtracts Age from max-age, so max-age is Age plus what is left; both in whole seconds, rounded down, so
    that no cache believes an entry fresh for longer than it is.

    Args:
        max_age: seconds of reuse without asking, at most; None is `no-cache`.
        max_stale: seconds of stale-while-revalidate and of stale-if-error, at most.
    """
    entry = read.entry
    if entry is None or not entry.write_id:
        return NO_STORE  # good for this read alone: an invalidation has overtaken it, or it could not be stored
    whose = b"public" if is_public else b"private"
    if max_age is None:
        return b"%s, no-cache" % whose
    left = max(0.0, entry.fresh_until - entry.created - read.age)
    value = b"%s, max-age=%d" % (whose, int(read.age) + int(min(left, max_age)))
    stale_from = max(entry.created + read.age, entry.fresh_until)
    while_revalidate = int(min(entry.stale_until - stale_from, max_stale))
    if while_revalidate > 0:
        value += b", stale-while-revalidate=%d" % while_revalidate
    if_error = int(min(entry.expires_at - stale_from, max_stale))
    if if_error > 0:
        value += b", stale-if-error=%d" % if_error
    return value


def cache_status(read: Read) -> bytes:
    """Return what this cache did: a hit, a stale hit (its ttl is negative), a miss, or stale because its load fails.

    A miss that waited for the load of another is collapsed.
    """
    entry = read.entry
    if entry is None or not entry.write_id:
        return b"cacheworkers; fwd=miss; detail=%s" % read.tier.encode()
    if read.freshness is Freshness.LAPSED:
        what = b"fwd=stale"
    elif read.is_joined:
        what = b"fwd=miss; stored; collapsed"
    elif read.tier == "load" or (read.tier == "store" and read.age <= read.waited):
        what = b"fwd=miss; stored"
    else:
        what = b"hit"
    ttl = math.floor(entry.fresh_until - entry.created - read.age)
    return b"cacheworkers; %s; ttl=%d; detail=%s" % (what, ttl, read.tier.encode())


def surrogate_key(read: Read) -> bytes | None:
    """Return an entry's tags, separated by spaces; what could be mistaken in them is percent-encoded.

    None if they are too long for a header: then no proxy can purge the answer by them.
    """
    tags = read.entry.tags if read.entry is not None else ()
    value = " ".join(quote(tag, safe=_PLAIN, errors="replace") for tag in tags).encode()
    return value if len(value) <= MAX_SURROGATE_KEY_BYTES else None

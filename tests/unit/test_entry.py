"""Entries: their envelope, their freshness, what a reader does with them, how long they live."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheworkers import Policy
from cacheworkers.core import envelope
from cacheworkers.core.entry import Action, Entry, Freshness, decide, life_of
from cacheworkers.core.schema_fingerprint import NO_FINGERPRINT
from cacheworkers.errors import EnvelopeError

EARLY = envelope.load_times_before(1.0)


def entry(**changes: Any) -> Entry:
    made = Entry("find[1]", ("a", "b"), b'{"x":1}', 100.0, 200.0, 300.0, 400.0, 60.0, 0.25, 7, b"12345678", b"87654321")
    return msgspec.structs.replace(made, **changes)


def test_envelope_carries_an_entry_whole() -> None:
    raw = envelope.pack(entry())

    assert envelope.unpack(raw) == entry()
    assert envelope.version_of(raw) == b"12345678"


@given(st.floats(0, 500), st.integers(0, 9), st.integers(0, 130), st.booleans())
def test_a_fresh_payload_is_that_of_the_whole_entry(now: float, since: int, cut: int, is_negative: bool) -> None:
    """The short ways, for one key and for many, agree with the long one, on whole envelopes and on cut ones."""
    raw = envelope.pack(entry(is_negative=is_negative))[: 130 - cut]
    try:
        whole = envelope.unpack(raw)
    except EnvelopeError:
        expected = None
    else:
        is_served = whole.freshness(now) is Freshness.FRESH and whole.seq >= since
        expected = (whole.payload or None) if is_served else None

    assert envelope.fresh_payloads([None, raw], now, since, 0.0) == [None, expected]
    assert envelope.fresh_payloads([raw, raw], now, since, 0.0) == [expected, expected]
    assert envelope.fresh_payload(raw, "find[1]", now, since, 0, NO_FINGERPRINT) == expected


def test_the_short_way_for_one_key_leaves_what_is_not_simply_fresh() -> None:
    """What is of another call or release, older than its reader asks for, for waiters alone, or nearly stale."""
    fingerprint, other = b"types  1", b"types  2"
    raw = envelope.pack(entry(fingerprint=fingerprint))

    assert envelope.fresh_payload(raw, "find[1]", 150.0, 0, EARLY, fingerprint) == b'{"x":1}'
    assert envelope.fresh_payload(raw, "find[2]", 150.0, 0, EARLY, fingerprint) is None
    assert envelope.fresh_payload(raw, "find[1]", 150.0, 0, EARLY, other) is None
    assert envelope.fresh_payload(raw, "find[1]", 195.0, 0, EARLY, fingerprint) is None
    assert envelope.fresh_payload(raw, "find[1]", 195.0, 0, 0, fingerprint) == b'{"x":1}'
    seq = envelope.unpack(raw).seq
    assert envelope.fresh_payload(raw, "find[1]", 150.0, seq, EARLY, fingerprint) == b'{"x":1}'
    assert envelope.fresh_payload(raw, "find[1]", 150.0, seq + 1, EARLY, fingerprint) is None
    assert envelope.fresh_payloads([raw], 150.0, seq + 1, 1.0, fingerprint) == [None]
    unshared = envelope.pack(entry(fingerprint=fingerprint, is_unshared=True))
    assert envelope.fresh_payload(unshared, "find[1]", 150.0, 0, EARLY, fingerprint) is None


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_envelope(raw: bytes) -> None:
    with pytest.raises(EnvelopeError):
        envelope.unpack(raw)


@pytest.mark.parametrize("cut", range(1, 80))
def test_cut_envelopes_are_no_envelopes(cut: int) -> None:
    with pytest.raises(EnvelopeError):
        envelope.unpack(envelope.pack(entry(payload=b""))[:-cut])


def test_freshness_changes_at_its_instants() -> None:
    seen = [entry().freshness(now).value for now in (199.9, 200.0, 299.9, 300.0, 399.9, 400.0)]

    assert seen == ["fresh", "stale", "stale", "lapsed", "lapsed", "missing"]


@pytest.mark.parametrize("freshness", Freshness)
@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("is_failing", [False, True])
def test_decisions(freshness: Freshness, is_early: bool, is_failing: bool) -> None:
    """An entry is served as long as it lives; it is asked for when it is stale, or early, and no backoff runs."""
    action = decide(freshness, is_early=is_early, is_failing=is_failing)

    is_served = freshness in (Freshness.FRESH, Freshness.STALE)
    is_due = freshness is Freshness.STALE or (freshness is Freshness.FRESH and is_early)
    assert (action in (Action.SERVE, Action.SERVE_AND_ASK)) is is_served
    assert (action is Action.SERVE_AND_ASK) is (is_due and not is_failing)
    assert (action is Action.LOAD) is (not is_served and not is_failing)
    assert (action is Action.SERVE_MARKED) is (freshness is Freshness.LAPSED and is_failing)
    assert (action is Action.RAISE) is (freshness is Freshness.MISSING and is_failing)


def test_early_revalidation_grows_likelier_towards_the_end() -> None:
    assert entry().early_at(1.0, 1.0) == 200.0
    assert entry().early_at(1.0, 0.01) < entry().early_at(1.0, 0.5) < 200.0


def test_life_of_none_has_no_stale_period_and_jitter_only_shortens() -> None:
    policy = Policy(fresh_for=100, jitter=0.5, negative_for=10)
    made = life_of(policy, created=0, load_time=0, is_negative=False, fresh_for=None, chance=lambda: 1)
    none = life_of(policy, created=0, load_time=0, is_negative=True, fresh_for=None, chance=lambda: 0)

    assert made.fresh_until == 50
    assert none.fresh_until == none.stale_until == 10


@given(st.floats(0, 500), st.floats(0, 500))
def test_an_entry_that_is_held_off_is_never_fresh_and_stale_no_longer_than_a_soft_invalidation_leaves_it(
    stale_for: float, now: float
) -> None:
    made = entry(stale_for=stale_for).held_off()

    assert made.freshness(now) is not Freshness.FRESH or now < made.created
    assert made.stale_until <= made.created + stale_for
    assert made.expires_at == entry().expires_at


def test_calls_are_overdue_at_instants_of_their_own() -> None:
    """In the third quarter of the stale period, which here is from 200 to 300."""
    instants = [entry(call=f"find[{n}]").overdue_at() for n in range(1000)]

    assert 250 <= min(instants) < 252 and 273 < max(instants) < 275
    assert len({round(at) for at in instants}) == 26

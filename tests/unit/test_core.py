"""Pure parts: calls, keys, tags, codec, envelope, life and decisions, settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheworkers import CallError, CodecError, Config, ConfigError, DeclarationError, Policy, TagError
from cacheworkers.core import envelope
from cacheworkers.core.calls import Signature, loader_name_of
from cacheworkers.core.codec import Codec
from cacheworkers.core.entry import DECISIONS, Action, Entry, Freshness, decide, life_of
from cacheworkers.core.keys import Keyspace
from cacheworkers.core.tags import TagTemplates, check_tag
from cacheworkers.errors import EnvelopeError

KEYS = Keyspace("cw")


def find(load: Any, text: str, page: int = 1) -> str:
    return text


def slot(key: str) -> str:
    start = key.index("{")
    return key[start + 1 : key.index("}", start)]


@given(st.text(max_size=40), st.integers(-(2**60), 2**60))
def test_parse_is_the_reverse_of_bind(text: str, page: int) -> None:
    signature = Signature("find", find)

    call = signature.bind((text,), {"page": page})

    assert signature.parse(call.text) == call
    assert loader_name_of(call.text) == "find"


@given(st.text(max_size=30), st.text(max_size=30))
def test_different_arguments_have_different_texts(one: str, other: str) -> None:
    signature = Signature("find", find)

    assert (signature.bind((one,), {}).text == signature.bind((other,), {}).text) == (one == other)


@given(st.text(max_size=30))
def test_keys_of_a_call_share_a_slot(text: str) -> None:
    call = Signature("find", find).bind((text,), {}).text

    assert len({slot(key(call)) for key in (KEYS.entry, KEYS.lease, KEYS.failures, KEYS.attempts)}) == 1
    assert KEYS.call_of(KEYS.entry(call).encode()) == call


@given(st.text(min_size=1, max_size=30), st.integers(0, 9))
def test_keys_of_a_tag_share_a_slot_that_is_not_empty(tag: str, shard: int) -> None:
    keys = (KEYS.tag_set(tag, shard), KEYS.last_invalidation(tag, shard), KEYS.doomed(tag, shard, 1, "ab"))

    assert len({slot(key) for key in keys}) == 1 and slot(keys[0])
    assert KEYS.tag_of(keys[0]) == (tag, shard)
    assert KEYS.tag_of(keys[2]) is None


def test_long_calls_and_odd_signatures_are_refused() -> None:
    with pytest.raises(CallError, match="512 bytes"):
        Signature("find", find).bind(("x" * 600,), {})
    with pytest.raises(DeclarationError, match="load"):
        Signature("f", lambda: 1)
    with pytest.raises(DeclarationError, match="args"):
        Signature("f", lambda load, *args: 1)
    with pytest.raises(DeclarationError, match="Bad Name"):
        Signature("Bad Name", find)
    with pytest.raises(CallError, match="other"):
        Signature("find", find).parse("other[1]")


def test_version_is_part_of_the_text() -> None:
    assert Signature("find", find, version=2).bind(("a",), {}).text == 'find@2["a",1]'


@pytest.mark.parametrize("tag", ["", "a\nb", "x" * 300, 7])
def test_illegal_tags_are_refused(tag: Any) -> None:
    with pytest.raises(TagError):
        check_tag(tag, 200)


def test_templates_name_what_they_do_not_know() -> None:
    assert TagTemplates(["p:{text}:{page}"], ("text", "page"), max_bytes=99).expand(("a", 2)) == ("p:a:2",)
    with pytest.raises(DeclarationError, match="wrong"):
        TagTemplates(["p:{wrong}"], ("text",), max_bytes=99)


class Point(msgspec.Struct, frozen=True):
    x: int
    tags: tuple[str, ...] = ()


@dataclasses.dataclass
class Box:
    points: list[Point]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(Point, Point(1, ("a",))), (Box, Box([Point(1)])), (int | None, None), (dict[str, float], {"a": 1.5}), (Any, [1])],
)
def test_values_survive_their_json(annotation: Any, value: Any) -> None:
    codec = Codec(annotation)

    assert codec.decode(codec.encode(value)) == value


def test_only_what_is_immutable_all_the_way_down_is_shared() -> None:
    assert Codec(Point).is_shareable and Codec(tuple[Point, ...] | None).is_shareable
    assert not Codec(Box).is_shareable and not Codec(list[int]).is_shareable and not Codec(Any).is_shareable


def test_what_json_cannot_carry_is_refused() -> None:
    with pytest.raises(DeclarationError, match="ORM row"):
        Codec(Keyspace)
    with pytest.raises(CodecError, match="finite"):
        Codec(float).encode(float("inf"))
    with pytest.raises(CodecError):
        Codec(int).encode("text")
    with pytest.raises(CodecError):
        Codec(int).decode(b"not json")


def entry(**changes: Any) -> Entry:
    made = Entry("find[1]", ("a", "b"), b'{"x":1}', 100.0, 200.0, 300.0, 400.0, 60.0, 0.25, 7, b"12345678")
    return msgspec.structs.replace(made, **changes)


def test_envelope_carries_an_entry_whole() -> None:
    raw = envelope.pack(entry())

    assert envelope.unpack(raw) == entry()
    assert envelope.version_of(raw) == b"12345678"


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


@pytest.mark.parametrize(("found", "action"), DECISIONS.items())
def test_decision_table(found: tuple[Freshness, bool, bool], action: Action) -> None:
    freshness, is_early, is_failing = found

    assert decide(freshness, is_early=is_early, is_failing=is_failing) is action
    assert (action is Action.RAISE) == (freshness is Freshness.MISSING and is_failing)


def test_early_revalidation_grows_likelier_towards_the_end() -> None:
    assert entry().early_at(1.0, 1.0) == 200.0
    assert entry().early_at(1.0, 0.01) < entry().early_at(1.0, 0.5) < 200.0


def test_life_of_none_has_no_stale_period_and_jitter_only_shortens() -> None:
    policy = Policy(fresh_for=100, jitter=0.5, negative_for=10)
    made = life_of(
        policy, created=0, load_time=0, is_negative=False, fresh_for=None, is_held_off=False, chance=lambda: 1
    )
    none = life_of(
        policy, created=0, load_time=0, is_negative=True, fresh_for=None, is_held_off=False, chance=lambda: 0
    )

    assert made.fresh_until == 50
    assert none.fresh_until == none.stale_until == 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fresh_for": -1}, "fresh_for must be >= 0 seconds, got -1"),
        ({"load_for": 0}, "load_for must be > 0 seconds, got 0"),
        ({"jitter": 0.9}, "jitter must be <= 0.5, got 0.9"),
        ({"on_timeout": "hope"}, "on_timeout"),
        ({"version": 0}, "version"),
    ],
)
def test_policy_names_field_value_and_rule(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"namespace": "a:b"}, "a:b"), ({"bulkhead": 0}, "bulkhead"), ({"redis_url": "localhost"}, "redis_url")],
)
def test_config_names_field_and_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**wrong)


def test_config_from_the_environment() -> None:
    env = {"REDIS_URL": "redis://h:1/0", "CACHEWORKERS_L1_ENTRIES": "5", "CACHEWORKERS_TAG_SHARDS": "products=4"}

    config = Config.from_env(env, namespace="shop")

    assert (config.redis_url, config.l1_entries, config.tag_shards) == ("redis://h:1/0", 5, {"products": 4})
    with pytest.raises(ConfigError, match="CACHEWORKERS_NONSENSE"):
        Config.from_env({"CACHEWORKERS_NONSENSE": "1"})
    with pytest.raises(ConfigError, match="BULKHEAD"):
        Config.from_env({"CACHEWORKERS_BULKHEAD": "many"})

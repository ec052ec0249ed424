"""Laws of calls and keys: texts and arguments are one to one, and what one script touches lives in one slot."""

from __future__ import annotations

import binascii
import datetime
import decimal
import enum
import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cacheworkers.core.keys import Keyspace
from cacheworkers.core.signature import Signature, loader_name_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = {
    int: st.integers(-(2**63), 2**64 - 1),
    str: st.text(max_size=30),
    bool: st.booleans(),
    float: NUMBERS,
    decimal.Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    uuid.UUID: st.uuids(),
    datetime.date: st.dates(),
    datetime.datetime: st.datetimes(
        min_value=datetime.datetime(2, 1, 1),
        max_value=datetime.datetime(9998, 1, 1),
        timezones=st.none() | st.integers(-840, 840).map(lambda m: datetime.timezone(datetime.timedelta(minutes=m))),
    ),
    Colour: st.sampled_from(Colour),
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | NUMBERS | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def typed(draw: st.DrawFn) -> tuple[Any, st.SearchStrategy[Any]]:
    """A type that a parameter may have, and its values."""
    kind, values = draw(st.sampled_from(list(SCALARS.items())))
    return draw(
        st.sampled_from(
            [
                (kind, values),
                (kind | None, values | st.none()),
                (list[kind], st.lists(values, max_size=3)),  # type: ignore[valid-type]  # made at run time
                (tuple[kind, str], st.tuples(values, SCALARS[str])),  # type: ignore[valid-type]
                (dict[int, kind], st.dictionaries(st.integers(-99, 99), values, max_size=3)),  # type: ignore[valid-type]
                (Any, ANYTHING),
            ]
        )
    )


@st.composite
def signatures(draw: st.DrawFn) -> tuple[Signature, st.SearchStrategy[tuple[Any, ...]]]:
    """A loader of up to three parameters, and its arguments."""
    types = draw(st.lists(typed(), max_size=3))
    functions = (lambda load: 0, lambda load, a: 0, lambda load, a, b: 0, lambda load, a, b, c: 0)
    function: Any = functions[len(types)]
    function.__annotations__ = {name: annotation for name, (annotation, _) in zip("abc", types, strict=False)}
    version = draw(st.integers(1, 3))
    signature = Signature("find", function, version=version, max_bytes=100_000)
    return signature, st.tuples(*(values for _, values in types))


def with_types(value: Any) -> Any:
    """Return a value so that only the same are equal: 1, 1.0 and True differ."""
    if isinstance(value, list | tuple):
        return type(value), [with_types(each) for each in value]
    if isinstance(value, dict):
        return dict, {key: with_types(each) for key, each in value.items()}
    return type(value), repr(value)


@given(st.data())
def test_parse_is_the_reverse_of_bind(data: st.DataObject) -> None:
    signature, arguments = data.draw(signatures())

    call = signature.bind(data.draw(arguments), {})
    parsed = signature.parse(call.text)

    assert parsed.text == call.text
    assert with_types(parsed.arguments) == with_types(call.arguments)
    assert loader_name_of(call.text) == "find"


@given(st.data())
def test_different_canonical_arguments_have_different_texts(data: st.DataObject) -> None:
    signature, arguments = data.draw(signatures())

    one, other = signature.bind(data.draw(arguments), {}), signature.bind(data.draw(arguments), {})

    assert (one.text == other.text) == (with_types(one.arguments) == with_types(other.arguments))


@given(st.data())
def test_canonical_arguments_are_their_own(data: st.DataObject) -> None:
    """Binding what was bound changes nothing, by position or by name."""
    signature, arguments = data.draw(signatures())

    call = signature.bind(data.draw(arguments), {})

    assert signature.bind(call.arguments, {}) == call
    assert signature.bind((), dict(zip(signature.parameters, call.arguments, strict=True))) == call


@given(st.data())
def test_equal_raw_arguments_are_one_call_where_they_serve_as_keys(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([each for each in SCALARS if of_one(each).positional_keys]))
    values = st.shared(SCALARS[kind], key="value")  # drawn twice: equal, and perhaps not the same object
    signature = of_one(kind)

    assert signature.bind((data.draw(values),), {}).text == signature.bind((data.draw(values),), {}).text


@given(st.data())
def test_keys_of_a_call_share_a_slot(data: st.DataObject) -> None:
    signature, arguments = data.draw(signatures())
    keys = Keyspace("cw")
    call = signature.bind(data.draw(arguments), {}).text

    made = [make(call) for make in (keys.entry, keys.lease, keys.failures, keys.attempts)]

    assert len({slot(key) for key in made}) == 1 and len(set(made)) == 4
    assert keys.call_of(made[0].encode()) == keys.call_of(made[2].encode()) == call


@given(st.text(min_size=1, max_size=30), st.integers(0, 1023), st.integers(0, 2**60))
def test_keys_of_a_tag_share_a_slot(tag: str, shard: int, n: int) -> None:
    keys = Keyspace("cw")
    named = [make(tag, shard) for make in (keys.tag_set, keys.last_invalidation, keys.detached_index)]
    detached = keys.detaching(tag, shard, n, "0a1b")[3]

    assert len({slot(key) for key in (*named, detached)}) == 1
    assert [keys.tag_of(key) for key in named] == [(tag, shard)] * 3
    assert keys.tag_of(detached) is None


@given(st.text("ab{}#%12", min_size=1, max_size=6), st.text("ab{}#%12", min_size=1, max_size=6), st.integers(0, 12))
def test_different_tags_have_different_keys(one: str, other: str, shard: int) -> None:
    keys = Keyspace("cw")

    assert (keys.tag_set(one, shard) == keys.tag_set(other, 0)) == ((one, shard) == (other, 0))


def test_the_slot_of_the_specification_is_that_of_this_test() -> None:
    """The check value of the Redis Cluster specification, and its examples of hash tags."""
    assert binascii.crc_hqx(b"123456789", 0) == 0x31C3
    assert slot("{user1000}.following") == slot("{user1000}.followers") == slot("user1000")
    assert slot("foo{}{bar}") == binascii.crc_hqx(b"foo{}{bar}", 0) % 16384
    assert slot("foo{{bar}}zap") == slot("{bar")


def of_one(kind: Any) -> Signature:
    def one(load, value): ...  # type: ignore[no-untyped-def]

    one.__annotations__["value"] = kind
    return Signature("one", one)


def slot(key: str) -> int:
    """Return a key's slot by the rule of Redis Cluster: CRC16 of what the first braces hold, unless that is empty."""
    raw = key.encode()
    start = raw.find(b"{")
    end = raw.find(b"}", start + 1)
    if start >= 0 and end > start + 1:
        raw = raw[start + 1 : end]
    return binascii.crc_hqx(raw, 0) % 16384

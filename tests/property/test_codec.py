"""Laws of the codec: what it encodes it decodes, and whatever it is given it answers with a value or CodecError."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
import uuid
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheworkers.core.codec import Codec
from cacheworkers.errors import CodecError


class Line(msgspec.Struct, frozen=True):
    sku: str
    count: int
    weight: float | None = None


@dataclasses.dataclass(frozen=True)
class Order:
    id: uuid.UUID
    lines: tuple[Line, ...]
    total: decimal.Decimal
    placed: datetime.date


class View(pydantic.BaseModel):
    name: str
    tags: list[str]
    price: float | None = None


FLOATS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
LINES = st.builds(Line, st.text(), INTEGERS, FLOATS)
ORDERS = st.builds(
    Order,
    st.uuids(),
    st.lists(LINES, max_size=3).map(tuple),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.dates(),
)
VIEWS = st.builds(View, name=st.text(), tags=st.lists(st.text(), max_size=3), price=FLOATS)
JSON = st.recursive(
    FLOATS | st.booleans() | INTEGERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
#: A type, its codec, and its values.
KINDS: list[tuple[Any, Codec, st.SearchStrategy[Any]]] = [
    (annotation, Codec(annotation), values)
    for annotation, values in (
        (Line, LINES),
        (Order | None, ORDERS | st.none()),
        (dict[int, list[Line]], st.dictionaries(INTEGERS, st.lists(LINES, max_size=2), max_size=3)),
        (View, VIEWS),
        (list[View | None], st.lists(VIEWS | st.none(), max_size=3)),
        (Any, JSON),
    )
]


@given(st.data())
def test_what_is_encoded_is_decoded(data: st.DataObject) -> None:
    _, codec, values = data.draw(st.sampled_from(KINDS))
    value = data.draw(values)

    payload = codec.encode(value)
    decoded = codec.decode(payload)

    assert decoded == value and type(decoded) is type(value)
    assert codec.encode(decoded) == payload


@given(st.data())
def test_payloads_are_json_by_the_letter(data: st.DataObject) -> None:
    """No `NaN`, no `Infinity`: a browser reads them, too."""
    _, codec, values = data.draw(st.sampled_from(KINDS))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(codec.encode(data.draw(values)), parse_constant=refuse)


@given(st.data(), st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_payload_is_a_value_or_a_codec_error(data: st.DataObject, payload: bytes) -> None:
    _, codec, _ = data.draw(st.sampled_from(KINDS))

    try:
        value = codec.decode(payload)
    except CodecError:
        return

    assert codec.decode(codec.encode(value)) == value


@given(st.data())
def test_a_value_of_another_type_is_refused_or_survives_as_one_of_this(data: st.DataObject) -> None:
    _, codec, _ = data.draw(st.sampled_from(KINDS))
    _, _, others = data.draw(st.sampled_from(KINDS))

    try:
        payload = codec.encode(data.draw(others))
    except CodecError:
        return

    assert codec.encode(codec.decode(payload)) == codec.encode(codec.decode(codec.encode(codec.decode(payload))))


@given(st.sampled_from([float("nan"), float("inf"), float("-inf")]), JSON, st.integers(0, 3))
def test_no_value_that_holds_infinity_is_encoded(wrong: float, beside: Any, depth: int) -> None:
    value: Any = [beside, wrong]
    for _ in range(depth):
        value = {"a": value}

    with pytest.raises(CodecError, match="finite"):
        Codec(Any).encode(value)

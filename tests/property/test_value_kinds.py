"""What readers get is what the loader returned, or its load is refused: for every kind of value."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheworkers.core.codec import Codec
from cacheworkers.core.comparison import difference
from cacheworkers.errors import CodecError, DeclarationError

from .value_kinds import KINDS, Kind, Model, View


def is_kept(annotation: Any, value: Any) -> bool:
    """Return whether a value comes back as it is; anything else is refused: where declared, or when loaded."""
    try:
        codec = Codec(annotation)
        payload = codec.encode(value)
    except (CodecError, DeclarationError) as error:
        assert len(str(error)) < 600
        return False
    decoded = codec.decode(payload)
    assert difference(value, decoded) is None and decoded == value
    assert codec.encode(decoded) == payload
    return True


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_value_is_kept_or_refused_as_the_reference_says(kind: Kind) -> None:
    assert is_kept(kind.annotation, kind.make()) is kind.is_kept
    assert is_kept(Any, kind.make()) is kind.is_kept_under_any


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_holds_a_kind_of_value_is_kept_or_refused_as_it_is(kind: Kind) -> None:
    """In a list, a dict and a tuple, beside others: columns of values are compared as one value is."""
    if kind.name.startswith("None"):
        return
    values = [kind.make(), kind.make()]

    assert is_kept(list[kind.annotation], values) is kind.is_kept  # type: ignore[name-defined]
    assert is_kept(dict[str, kind.annotation], {"a": values[0], "b": values[1]}) is kind.is_kept  # type: ignore[name-defined]
    assert is_kept(tuple[kind.annotation, int], (values[0], 1)) is kind.is_kept  # type: ignore[name-defined]
    assert is_kept(dict[str, Any], {"deep": [{"er": values[0]}]}) is kind.is_kept_under_any


@given(st.data())
def test_one_odd_value_among_many_is_found(data: st.DataObject) -> None:
    """A list of good values with one that changes is refused, and the message says which."""
    good, odd = View(1), View("1")  # type: ignore[arg-type]
    at, length = data.draw(st.integers(0, 30)), 31
    values = [odd if n == at else good for n in range(length)]

    with pytest.raises(CodecError, match=rf"\[{at}\]"):
        Codec(list[View]).encode(values)


@given(st.data())
def test_any_value_under_any_annotation_is_kept_or_refused(data: st.DataObject) -> None:
    """All kinds under all annotations: nothing comes back changed."""
    annotation = data.draw(st.sampled_from(KINDS)).annotation
    value = data.draw(st.sampled_from(KINDS)).make()

    is_kept(annotation, value)
    is_kept(list[annotation], [value, value])


def test_a_message_names_field_and_rule() -> None:
    with pytest.raises(CodecError, match=r"\.labels is \['a'\] \(list\) and comes back as \{'a'\} \(set\)"):
        Codec(View).encode(View(1, ["a"]))  # type: ignore[arg-type]
    with pytest.raises(
        CodecError, match=r"\['price'\] is Decimal\('12.50'\) \(Decimal\) and comes back as '12.50' \(str\)"
    ):
        Codec(Any).encode({"price": KINDS[10].make()})


class Account(pydantic.BaseModel):
    token: pydantic.SecretStr | None


class Marked(pydantic.BaseModel):
    token: Annotated[pydantic.SecretStr, pydantic.PlainSerializer(lambda token: token.get_secret_value())]


class Revealed(pydantic.BaseModel):
    token: pydantic.SecretStr

    @pydantic.field_serializer("token")
    def reveal(self, token: pydantic.SecretStr) -> str:
        return token.get_secret_value()


class Hidden(pydantic.BaseModel):
    margin: int = pydantic.Field(exclude=True)


class HiddenByDefault(pydantic.BaseModel):
    margin: int = pydantic.Field(default=0, exclude=True)


class HiddenByChance(pydantic.BaseModel):
    trace: uuid.UUID = pydantic.Field(default_factory=uuid.uuid4, exclude=True)


class HiddenByRule(pydantic.BaseModel):
    notes: list[str] = pydantic.Field(default_factory=list, exclude=True)


@dataclasses.dataclass
class Login:
    account: Account
    password: pydantic.SecretBytes


@pytest.mark.parametrize(
    "annotation",
    [Account, Hidden, HiddenByChance, Login, list[Hidden], pydantic.SecretStr, dict[str, pydantic.SecretStr]],
    ids=str,
)
def test_what_its_json_hides_is_refused_where_the_loader_is_declared(annotation: Any) -> None:
    with pytest.raises(DeclarationError, match=r"asterisks|`exclude=True`"):
        Codec(annotation)


def test_a_secret_with_a_serializer_and_a_hidden_default_are_kept() -> None:
    assert is_kept(Marked, Marked(token=pydantic.SecretStr("abc")))
    assert is_kept(Revealed, Revealed(token=pydantic.SecretStr("abc")))
    assert is_kept(HiddenByDefault, HiddenByDefault())
    assert is_kept(HiddenByRule, HiddenByRule())


def test_json_of_a_model_is_whole_and_its_defaults_are_known() -> None:
    """Browsers get every field; readers get to know which of them were given."""
    codec = Codec(Model)
    payload = codec.encode(Model(id=1))

    assert payload.rstrip() == b'{"id":1,"price":null,"made":[1]}'
    assert codec.decode(payload).model_fields_set == {"id"}
    assert codec.decode(payload.rstrip()).model_fields_set == {"id", "price", "made"}


ORDERED = """
import sys; sys.path.insert(0, sys.argv[1])
from tests.property.value_kinds import Labelled, View
from cacheworkers.core.codec import Codec
names = {f"name{n}" for n in range(50)}
print(Codec(View).encode(View(1, names)), Codec(Labelled).encode(Labelled(labels=names)),
      Codec(dict[str, set[str]]).encode({"b": names, "a": names}), Codec(frozenset[str]).encode(frozenset(names)))
"""


def test_equal_values_have_equal_bytes_in_every_process() -> None:
    """A set's order depends on the process's hash seed; its JSON does not, nor does the ETag."""
    root = str(Path(__file__).parent.parent.parent)
    found = {
        subprocess.run(
            [sys.executable, "-c", ORDERED, root],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert len(found) == 1

"""Mapped columns: which attributes of a mapped class are in its row, and which of them change by themselves."""

from __future__ import annotations

import datetime
import functools
import uuid
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from sqlalchemy import Column, Table, types
from sqlalchemy.orm import InstanceState, Mapper
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql.visitors import iterate

from cacheworkers.sql.sqlalchemy_internals import has_variants, set_since_loaded

T = TypeVar("T")

#: Column types that change no value of these Python types on its way to the database.
_PLAIN: Mapping[type, type] = {
    **dict.fromkeys((types.Integer, types.BigInteger, types.SmallInteger), int),
    **dict.fromkeys((types.INTEGER, types.BIGINT, types.SMALLINT), int),
    **dict.fromkeys((types.String, types.Text, types.Unicode, types.UnicodeText, types.VARCHAR, types.TEXT), str),
    **dict.fromkeys((types.Boolean, types.BOOLEAN), bool),
    **dict.fromkeys((types.Date, types.DATE), datetime.date),
    **dict.fromkeys((types.Uuid, types.UUID), uuid.UUID),
}


def once_per_mapper(make: Callable[[Mapper[Any]], T]) -> Callable[[Mapper[Any]], T]:
    """Have a function of a mapper remember what it returns, for as long as there is that mapper."""
    known: weakref.WeakKeyDictionary[Mapper[Any], T] = weakref.WeakKeyDictionary()

    @functools.wraps(make)
    def remembered(mapper: Mapper[Any]) -> T:
        found = known.get(mapper)
        if found is None:
            found = known[mapper] = make(mapper)
        return found

    return remembered


@once_per_mapper
def row_columns(mapper: Mapper[Any]) -> Mapping[str, Any]:
    """Return the columns and SQL expressions that a mapped class's row has, by attribute.

    What only a polymorphic union or a discriminator's expression adds is in no row.
    """
    tables = set(mapper.tables)
    found = {}
    for attribute in mapper.column_attrs:
        if not hasattr(mapper.class_, attribute.key):
            continue
        for column in attribute.columns:
            if getattr(column, "table", None) in tables or getattr(column, "table", None) is None:
                found[attribute.key] = column
                break
    # Without any, it is mapped to a SELECT.
    return found or {each.key: each.columns[0] for each in mapper.column_attrs}


def changed_names(state: InstanceState[Any], names: set[str] | None = None) -> set[str]:
    """Return the attributes that a flush is going to write: those with a net change, and what any UPDATE changes.

    Args:
        names: those with a net change, if they are known.
    """
    found = set_names(state) if names is None else names
    return found | following_names(state.mapper) if found else found


def stored_as_given(column: Any, value: Any) -> bool:
    """Return whether a column holds just the value that is written to it: no type, server or expression changes it."""
    kind = getattr(column, "type", None)
    plain = _PLAIN.get(type(kind))
    if plain is None or has_variants(kind):
        return False
    if value is None:
        return True
    length = getattr(kind, "length", None)
    return type(value) is plain and (length is None or not isinstance(value, str) or len(value) <= length)


@once_per_mapper
def tables_of(mapper: Mapper[Any]) -> tuple[Table, ...]:
    """Return the tables of a mapped class, those it inherits too."""
    return tuple([table for table in mapper.tables if isinstance(table, Table)])


def name_of(mapper: Mapper[Any], column: Any) -> str | None:
    """Return the attribute of a mapped class that is a column; None if it has none."""
    try:
        return mapper.get_property_by_column(column).key
    except UnmappedColumnError:
        return None


@once_per_mapper
def key_names(mapper: Mapper[Any]) -> tuple[str, ...]:
    """Return the attributes of a mapped class's primary key, in its order."""
    return tuple([mapper.get_property_by_column(column).key for column in mapper.primary_key])


def is_computed(column: Any) -> bool:
    """Return whether the database works a column out again when its row changes: an expression counts too."""
    if not isinstance(column, Column):
        return True
    on_update: Any = column.onupdate
    is_sql = on_update is not None and (on_update.is_clause_element or on_update.is_sequence)
    return is_sql or column.computed is not None or column.server_onupdate is not None


@once_per_mapper
def computed_names(mapper: Mapper[Any]) -> frozenset[str]:
    """Return the attributes whose values an UPDATE leaves to the database, whatever it sets."""
    return frozenset(name for name, column in row_columns(mapper).items() if is_computed(column))


@once_per_mapper
def following_names(mapper: Mapper[Any]) -> frozenset[str]:
    """Return the attributes that may change whenever their row does."""
    return frozenset(
        name
        for name, column in row_columns(mapper).items()
        if isinstance(column, Column) and (is_computed(column) or column.onupdate is not None)
    )


@once_per_mapper
def moving_names(mapper: Mapper[Any]) -> frozenset[str]:
    """Return the attributes that a flush changes without a trace in their history."""
    inherited: set[Any] = set()  # the columns of a subclass's table that get the values of its base's row
    for each in mapper.iterate_to_root():
        if each.inherit_condition is not None:
            inherited.update(part for part in iterate(each.inherit_condition) if isinstance(part, Column))
    inherited.difference_update(mapper.base_mapper.local_table.columns)
    return frozenset(
        name
        for name, column in row_columns(mapper).items()
        if getattr(column, "onupdate", None) is not None or column is mapper.version_id_col or column in inherited
    )


def set_names(state: InstanceState[Any], among: Collection[str] | None = None) -> set[str]:
    """Return the attributes with a net change, of some or of all that are in the row."""
    names = set_since_loaded(state).keys() & (row_columns(state.mapper) if among is None else among)
    # `state.attrs` would make an object for each attribute of the class.
    return {name for name in names if state.get_history(name, PASSIVE_NO_INITIALIZE).has_changes()}

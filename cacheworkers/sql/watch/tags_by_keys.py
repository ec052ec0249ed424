"""Tags of keys: what is watched when `watch` is given a declarative base instead of a mapping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Table
from sqlalchemy.orm import Mapper, registry

from cacheworkers.errors import ConfigError
from cacheworkers.sql.sqlalchemy_internals import mappers_of
from cacheworkers.sql.watch.mapped_columns import row_columns, tables_of
from cacheworkers.sql.watch.row_values import Row

MakeTags = Callable[[Row], list[str]]


def by_keys(base: Any) -> dict[Any, MakeTags]:
    """Return a mapping of all mapped classes and association tables of a declarative base or registry.

    A row of `product` with key 42 and a foreign key to row 7 of `category` has the tags `product:42` and `category:7`.
    A key of several columns is written with colons; NULL makes no tag.  Names are those of the tables, with the schema
    where there is one.

    Raises:
        ConfigError: it is neither, or nothing is mapped yet.
    """
    found = base if isinstance(base, registry) else getattr(base, "registry", None)
    if not isinstance(found, registry):
        raise ConfigError(f"watch takes a mapping of classes to tags, or a declarative base, got {base!r}")
    found.configure()
    mappers = sorted(mappers_of(found), key=lambda mapper: mapper.class_.__qualname__)
    if not mappers:
        raise ConfigError(f"watch({base!r}): nothing is mapped yet; import the models first")
    mapping: dict[Any, MakeTags] = {each.class_: _of_class(each) for each in mappers}
    mapped = {table for mapper in mappers for table in tables_of(mapper)}
    for table in {
        table for mapper in mappers for each in mapper.relationships if (table := each.secondary) is not None
    }:
        if isinstance(table, Table) and table not in mapped:
            mapping[table] = _makes(_keys([table], {column: column.key for column in table.columns}))
    return mapping


def _of_class(mapper: Mapper[Any]) -> MakeTags:
    names = {column: name for name, column in row_columns(mapper).items()}
    for attribute in mapper.column_attrs:  # a key of a joined table is another column of the same attribute
        for column in attribute.columns:
            names.setdefault(column, attribute.key)
    return _makes(_keys(tables_of(mapper), names))


def _keys(tables: Iterable[Table], names: dict[Any, str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the table that a key names, and the attributes that it is made of, for each key of some tables."""
    found: dict[tuple[str, tuple[str, ...]], None] = {}
    for table in tables:
        own = tuple(table.primary_key)
        keys = [(table.fullname, own)] if own else []
        for foreign in table.foreign_key_constraints:
            to = {element.column: element.parent for element in foreign.elements}
            primary = tuple(foreign.referred_table.primary_key)
            if set(to) == set(primary):  # of another column, it names no row by its key
                keys.append((foreign.referred_table.fullname, tuple(to[column] for column in primary)))
        for name, columns in keys:
            if all(column in names for column in columns):
                found[name, tuple(names[column] for column in columns)] = None
    return list(found)


def _makes(keys: list[tuple[str, tuple[str, ...]]]) -> MakeTags:
    def tags(row: Row) -> list[str]:
        made = []
        for name, attributes in keys:
            values = [getattr(row, each) for each in attributes]
            if None not in values:
                made.append(":".join([name, *map(str, values)]))
        return made

    return tags

"""Watched: which classes and tables a watch is given, what makes their tags, and what else changes them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Table, event, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.mapper import _all_registries

from cacheworkers.core.tag_text import TagKinds
from cacheworkers.core.tags import TagTemplates, check_tag
from cacheworkers.errors import ConfigError, DeclarationError, TagError
from cacheworkers.sql.watch.cascades import Cascades
from cacheworkers.sql.watch.column_text import kind_of_column, text_maker
from cacheworkers.sql.watch.flush_changes import Described, TagsOf
from cacheworkers.sql.watch.row_values import Row, tables_of
from cacheworkers.sql.watch.statements import Statements

log = logging.getLogger("cacheworkers")
Tags = Callable[[Row], list[str]]
_TRUNCATES = re.compile(r"\btruncate\b", re.IGNORECASE)
_DELETES = re.compile(r"\b(?:delete|merge|replace)\b", re.IGNORECASE)


class WatchMapping:
    """A watch's mapping.  What depends on the user's tables is made when it is first needed, and again when more
    classes have been mapped since.
    """

    def __init__(
        self,
        mapping: Mapping[Any, TagsOf | Sequence[str]],
        max_tag_bytes: int,
        tag_kinds: TagKinds | None = None,
    ) -> None:
        """
        Raises:
            ConfigError: a key is no mapped class and no `Table`, or its tags are malformed, too long, or of no column.
        """
        self._max_tag_bytes = max_tag_bytes
        self._tag_kinds = TagKinds() if tag_kinds is None else tag_kinds
        self._classes: dict[type, Tags] = {}
        #: Association tables.
        self.links: dict[Table, Tags] = {}
        self._of_class: dict[type, Tags | None] = {}
        for key, tags_of in mapping.items():
            if isinstance(key, Table):
                columns = {column.key: column for column in key.columns}
                self.links[key] = self._checked(key.name, columns, tags_of)
                continue
            try:
                mapper: Any = inspect(key)
            except NoInspectionAvailable:
                mapper = None
            if not isinstance(mapper, Mapper):
                raise ConfigError(f"watch takes mapped classes and tables, {key!r} is neither")
            attributes = {each.key: each.columns[0] for each in mapper.column_attrs}
            self._classes[key] = self._checked(key.__name__, attributes, tags_of)
        for table in self.links:
            mapped = [mapper for mapper in _all_mappers() if mapper.local_table is table]
            if mapped:
                raise ConfigError(
                    f"the table {table.name} is mapped by {mapped[0].class_.__name__}: watch takes that class instead"
                )
        self._described: Described | None = None
        self._cascades: Cascades | None = None
        self._statements: Statements | None = None
        self._told: set[str] = set()
        # All forget before any complains: who comes after a complaint is not called.
        event.listen(Mapper, "after_configured", self._forget, insert=True)
        event.listen(Mapper, "after_configured", self._complain)
        _ = self.cascades  # what cannot be followed is said now

    def of(self, kind: type) -> Tags | None:
        """Return what makes the tags of a class's rows: its own, or that of the nearest watched class above it."""
        try:
            return self._of_class[kind]
        except KeyError:
            found = next((self._classes[each] for each in kind.__mro__ if each in self._classes), None)
            self._of_class[kind] = found
            return found

    def mappers(self) -> Iterator[tuple[type, Mapper[Any]]]:
        """Yield the watched classes."""
        for key in self._classes:
            yield key, inspect(key)

    @property
    def described(self) -> Described:
        """What makes the tags of each watched table's rows.

        Raises:
            ConfigError: a class that is not watched writes one of these tables.
        """
        if self._described is None:
            found: dict[Table, list[tuple[Mapper[Any] | None, Tags]]] = {
                table: [(None, tags_of)] for table, tags_of in self.links.items()
            }
            for _, watched in self.mappers():
                for mapper in watched.self_and_descendants:
                    tags_of = self.of(mapper.class_)
                    for table in tables_of(mapper):
                        there = found.setdefault(table, [])
                        # A subclass in the same table has the same rows; one that has a table of its own joins them.
                        if tags_of is not None and (mapper.local_table is table) and (mapper, tags_of) not in there:
                            there.append((mapper, tags_of))
            for complaint in self._unwatched(set(found)):
                raise ConfigError(complaint)
            self._described = found
        return self._described

    def tables(self) -> list[Table]:
        """Return all watched tables, those of subclasses too."""
        return list(self.described)

    def knows(self, table: Any) -> bool:
        """Return whether the hooks see what a flush does to a table; not so of another table of the same name."""
        return table in self.described or table in self.cascades

    @property
    def cascades(self) -> Cascades:
        """What else changes these tables."""
        if self._cascades is None:
            self._cascades = Cascades(self.tables())
        return self._cascades

    @property
    def statements(self) -> Statements:
        """Tells which statements change them."""
        if self._statements is None:
            cascades = self.cascades
            self._statements = Statements(
                changed=_names(self.tables()),
                deleted=_names(cascades.tables("ondelete")),
                updated=_names(cascades.tables("onupdate")),
                truncated=_names(cascades.truncating),
            )
        return self._statements

    def affected(self, statement: str) -> list[Table]:
        """Return the watched tables that a statement may change, itself or by what the database cascades."""
        if _TRUNCATES.search(statement):
            return self.tables()  # CASCADE empties whatever refers to a table, however many steps away
        names, cascades = self.statements.changes(statement), self.cascades
        known = {*self.tables(), *cascades.tables("ondelete"), *cascades.tables("onupdate")}
        named = {table for table in known if table.name in names}
        # A row that goes may set keys to NULL, which is an update.
        events = ("ondelete", "onupdate") if _DELETES.search(statement) else ("onupdate",)
        return [table for table in self.tables() if table in named or table in cascades.reached(named, events)]

    def _forget(self) -> None:
        self._described = self._cascades = self._statements = None

    def _complain(self) -> None:
        """Say once of each class mapped meanwhile that it should be watched; afterwards each flush says it.

        Raises:
            ConfigError: there is such a class.
        """
        try:
            _ = self.described
        except NoInspectionAvailable:
            return  # the watched classes are mapped no more
        except ConfigError as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                raise

    def _unwatched(self, tables: set[Table]) -> Iterator[str]:
        """Yield what is wrong with each class that is not watched and has some of these tables.

        Its flushes call none of the hooks, and nobody would know the tags of what they write.
        """
        trees = {
            watched.base_mapper
            for _, watched in self.mappers()
            if watched.polymorphic_on is not None or watched.base_mapper.polymorphic_on is not None
        }
        for mapper in _all_mappers():
            kind = mapper.class_
            # With a discriminator, what another class of the same tree writes are rows of its own.
            if self.of(kind) is not None or mapper.base_mapper in trees:
                continue
            for table in tables.intersection(tables_of(mapper)):
                yield (
                    f"the watched table {table.fullname} is mapped by {kind.__module__}.{kind.__qualname__}, too, "
                    f"which is not watched: what is written through it would be invalidated by nobody; give its tags "
                    f"in the same mapping (`lambda row: ()` if it is only read)"
                )

    def _checked(self, name: str, columns: Mapping[str, Any], tags_of: TagsOf | Sequence[str]) -> Tags:
        """Return what makes legal tags of a row, once it has been tried on a made-up one."""
        made = tags_of if callable(tags_of) else self._templates(name, columns, tags_of)
        sample = Row(name, columns, {key: _sample(column) for key, column in columns.items()})
        try:
            found = made(sample)
            tags = None if isinstance(found, str) else [tag for tag in found if isinstance(tag, str)]
        except ConfigError:
            raise
        except Exception:  # it makes more of its values than a sample can bear
            tags = []
        if tags is None:
            raise ConfigError(f"the tags of {name} must be a collection, got the text {found!r}")
        for tag in tags:
            try:
                check_tag(tag, self._max_tag_bytes)
            except TagError as error:
                raise ConfigError(f"the tags of {name} are not legal: {error}") from None

        def legal(row: Row) -> list[str]:
            return list(self._legal(name, made(row)))

        return legal

    def _legal(self, name: str, found: Iterable[str]) -> Iterator[str]:
        if isinstance(found, str):
            raise ConfigError(f"the tags of {name} must be a collection, got the text {found!r}")
        for tag in found:
            try:
                yield check_tag(tag, self._max_tag_bytes)
            except TagError as error:
                if not isinstance(tag, str):
                    raise
                # No loader can have such a tag either: there is nothing to invalidate, and no reason to fail a commit.
                log.warning("a tag of %s is left out: %s", name, error)

    def _templates(self, name: str, columns: Mapping[str, Any], templates: Sequence[str]) -> TagsOf:
        if isinstance(templates, str) or not templates:
            raise ConfigError(f"the tags of {name} must be a function or a list of templates, got {templates!r}")
        try:
            named = TagTemplates(templates, tuple(columns), max_bytes=self._max_tag_bytes)
            kinds = {field: kind_of_column(f"{name}.{field}", columns[field]) for field in named.fields}
            for texts, fields in named.skeletons():
                self._tag_kinds.add_rows(f"watched {name}", texts, [kinds[field] for field in fields])
            makers = {field: text_maker(kind) for field, kind in kinds.items()}
            made = TagTemplates(templates, tuple(columns), max_bytes=self._max_tag_bytes, texts=makers)
        except (DeclarationError, TagError) as error:
            raise ConfigError(f"watch of {name}: {error}") from None
        return lambda row: made.texts(_Values(row, tuple(columns)))


class _Values(Sequence[Any]):
    """A row's values by their place; none is looked at that is not asked for."""

    def __init__(self, row: Row, names: Sequence[str]) -> None:
        self._row, self._names = row, names

    def __getitem__(self, at: Any) -> Any:
        return getattr(self._row, self._names[at])

    def __len__(self) -> int:
        return len(self._names)


def _all_mappers() -> list[Mapper[Any]]:
    """Return the mappers of all registries, by name: one table can be mapped in several."""
    found = {mapper for registry in _all_registries() for mapper in registry.mappers}
    return sorted(found, key=lambda mapper: (mapper.class_.__module__, mapper.class_.__qualname__))


def _sample(column: Any) -> Any:
    """Return a value such as a column may have: the shortest that makes a tag."""
    try:
        kind = column.type.python_type
        return "x" if kind is str else kind()
    except (NotImplementedError, TypeError):
        return "x"


def _names(tables: Iterable[Table]) -> list[str]:
    return [table.name for table in tables]

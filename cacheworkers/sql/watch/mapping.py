"""Which classes and tables a watch is given, what makes their tags, and what else changes their rows."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Table, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper

from cacheworkers.core.tag_text import TagKinds
from cacheworkers.errors import ConfigError
from cacheworkers.sql.sqlalchemy_internals import all_mappers
from cacheworkers.sql.tag_options import Mode, TagOptions
from cacheworkers.sql.watch.cascades import Cascades
from cacheworkers.sql.watch.mapped_columns import row_columns, tables_of
from cacheworkers.sql.watch.mapped_tags import MappedTags
from cacheworkers.sql.watch.row_changes import Described
from cacheworkers.sql.watch.sql_writes import Writes
from cacheworkers.sql.watch.statements import Statements
from cacheworkers.sql.watch.tag_rules import TagRules
from cacheworkers.sql.watch.tags_by_keys import by_keys

log = logging.getLogger("cacheworkers")


class WatchMapping:
    """A watch's mapping.  What depends on the user's tables is made when it is first needed, and again when more
    classes have been mapped since.
    """

    def __init__(
        self,
        mapping: Any,
        max_tag_bytes: int,
        tag_kinds: TagKinds | None = None,
        *,
        columns: Mapping[Any, Collection[str]] | None = None,
        ignore: Mapping[Any, Collection[str]] | None = None,
        mode: Mode | Mapping[Any, Mode] = "hard",
    ) -> None:
        """
        Args:
            mapping, columns, ignore, mode: see `Cache.watch`.

        Raises:
            ConfigError: a key is no mapped class and no `Table`, or its tags are malformed, too long, or of no column;
                or one of the options names something that is not there.
        """
        if not isinstance(mapping, Mapping):
            mapping = by_keys(mapping)
        options = TagOptions("watch", mapping, columns, ignore, mode)
        self._tags = MappedTags(options, TagKinds() if tag_kinds is None else tag_kinds, max_tag_bytes)
        self._classes: dict[type, TagRules] = {}
        #: Association tables.
        self.links: dict[Table, TagRules] = {}
        #: Only classes that have been asked for and are not gone.
        self._of_class: weakref.WeakKeyDictionary[type, list[TagRules]] = weakref.WeakKeyDictionary()
        for key, tags_of in mapping.items():
            if isinstance(key, Table):
                self.links[key] = self._tags.rules(key, key.name, dict(key.columns.items()), tags_of)
            else:
                mapper = _mapper_of(key)
                self._classes[key] = self._tags.rules(key, key.__name__, row_columns(mapper), tags_of)
        for table in self.links:
            mapped = [mapper for mapper in all_mappers() if mapper.local_table is table]
            if mapped:
                raise ConfigError(
                    f"the table {table.name} is mapped by {mapped[0].class_.__name__}: watch takes that class instead"
                )
        self._described: Described | None = None
        self._cascades: Cascades | None = None
        self._statements: Statements | None = None
        self._associations: set[Any] | None = None
        self._complaints: set[str] = set()
        for key, mapper in self.mappers():
            self._check_subclasses(key, mapper)
        _ = self.cascades  # what cannot be followed is refused now

    def of(self, kind: type) -> TagRules | None:
        """Return what makes the tags of a class's rows: its own, or that of the nearest watched class above it."""
        try:
            return next(iter(self._of_class[kind]), None)
        except KeyError:
            found = next((self._classes[each] for each in kind.__mro__ if each in self._classes), None)
            self._of_class[kind] = [] if found is None else [found]
            return found

    def mappers(self) -> Iterator[tuple[type, Mapper[Any]]]:
        """Yield the watched classes that are still mapped: a registry may have been disposed of since."""
        for key in self._classes:
            mapper: Mapper[Any] | None = inspect(key, raiseerr=False)
            if mapper is not None:
                yield key, mapper

    def attributes(self) -> Iterator[tuple[type, list[str]]]:
        """Yield the watched classes, each with the attributes whose changes concern some of its tags."""
        for key, mapper in self.mappers():
            rules = self._classes[key]
            yield key, [name for name in row_columns(mapper) if rules.matters(name)]

    @property
    def described(self) -> Described:
        """What makes the tags of each watched table's rows.

        Raises:
            ConfigError: a class that is not watched writes one of these tables.
        """
        if self._described is None:
            found: dict[Table, list[tuple[Mapper[Any] | None, TagRules]]] = {
                table: [(None, rules)] for table, rules in self.links.items()
            }
            for _, watched in self.mappers():
                for mapper in watched.self_and_descendants:
                    rules = self.of(mapper.class_)
                    for table in tables_of(mapper):
                        there = found.setdefault(table, [])
                        # A subclass in the same table has the same rows; one that has a table of its own joins them.
                        if rules is not None and (mapper.local_table is table) and (mapper, rules) not in there:
                            there.append((mapper, rules))
            for complaint in self._unwatched(set(found)):
                raise ConfigError(complaint)
            self._described = found
        return self._described

    @property
    def associations(self) -> set[Any]:
        """The tables whose rows a flush writes for a relationship (`secondary`); some are mapped as well.

        Watched ones, and those from which the database changes watched ones.
        """
        if self._associations is None:
            secondary = {each.secondary for mapper in all_mappers() for each in mapper.relationships}
            known = {*self.described, *self.cascades.tables("ondelete"), *self.cascades.tables("onupdate")}
            self._associations = {table for table in known if table in secondary or table in self.links}
        return self._associations

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
        """Finds which of these tables statements change."""
        if self._statements is None:
            cascades = self.cascades
            self._statements = Statements(
                changed=_names(self.tables()),
                deleted=_names(cascades.tables("ondelete")),
                updated=_names(cascades.tables("onupdate")),
                truncated=_names(cascades.truncating),
            )
        return self._statements

    def affected(self, writes: Writes) -> list[Table]:
        """Return the watched tables that a statement may change, itself or by what the database cascades."""
        if writes.truncated or writes.opaque:
            return self.tables()  # CASCADE empties whatever refers to a table, however many steps away
        names, cascades = self.statements.changed_by(writes), self.cascades
        known = {*self.tables(), *cascades.tables("ondelete"), *cascades.tables("onupdate")}
        named = {table for table in known if table.name in names}
        # A row that goes may set keys to NULL, which is an update.
        events = ("ondelete", "onupdate") if writes.deleted else ("onupdate",)
        return [table for table in self.tables() if table in named or table in cascades.reached(named, events)]

    def forget(self) -> None:
        """Make again what depends on the user's tables: more classes are mapped."""
        self._described = self._cascades = self._statements = self._associations = None

    def complain(self) -> None:
        """Say once of each class mapped meanwhile that it should be watched; afterwards each flush says it.

        Raises:
            ConfigError: there is such a class.
        """
        try:
            _ = self.described
        except ConfigError as error:
            if str(error) not in self._complaints:
                self._complaints.add(str(error))
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
        for mapper in all_mappers():
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

    def _check_subclasses(self, key: type, mapper: Mapper[Any]) -> None:
        """Make sure that the rows of subclasses have what the tags are made of: concrete ones have their own columns.

        Raises:
            ConfigError: one has not.
        """
        for each in mapper.self_and_descendants:
            if each.class_ is not key and self.of(each.class_) is self._classes[key]:
                self._tags.try_on_sample(each.class_.__name__, row_columns(each), self._classes[key])


def _mapper_of(key: Any) -> Mapper[Any]:
    try:
        mapper: Any = inspect(key)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper):
        raise ConfigError(f"watch takes mapped classes and tables, {key!r} is neither")
    return mapper


def _names(tables: Iterable[Table]) -> list[str]:
    return [table.name for table in tables]

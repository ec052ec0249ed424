"""MappedTags: makes tag rules of what a watch is given for a class or table: a function, or templates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cacheworkers.core.tag_templates import TagTemplates, check_tag
from cacheworkers.core.tag_text import TagKinds
from cacheworkers.errors import ConfigError, DeclarationError, TagError
from cacheworkers.sql.tag_options import TagOptions
from cacheworkers.sql.watch.column_text import kind_of_column, text_maker
from cacheworkers.sql.watch.flush_changes import TagsOf
from cacheworkers.sql.watch.row_values import Row
from cacheworkers.sql.watch.tag_rules import TagRule, TagRules

log = logging.getLogger("cacheworkers")


class MappedTags:
    """Makes tag rules for the keys of one watch's mapping."""

    def __init__(self, options: TagOptions, tag_kinds: TagKinds, max_tag_bytes: int) -> None:
        self._options = options
        self._tag_kinds = tag_kinds
        self._max_tag_bytes = max_tag_bytes

    def rules(self, key: Any, name: str, columns: Mapping[str, Any], tags_of: TagsOf | Sequence[str]) -> TagRules:
        """Return what makes legal tags of a class's or table's rows, once it has been tried on a made-up one."""
        options = self._options
        ignored = options.ignored(key, columns)
        if callable(tags_of):
            rule = TagRule(
                self._checked(name, columns, tags_of), options.columns(key, None, columns), options.mode(key)
            )
            return TagRules([rule], ignored)
        if isinstance(tags_of, str) or not tags_of:
            raise ConfigError(
                f'the tags of {name} must be a function or a list of templates as ["product:{{id}}"], got {tags_of!r}'
            )
        rules = []
        for template in tags_of:
            make = self._checked(name, columns, self._template(name, columns, template))
            rules.append(TagRule(make, options.columns(key, template, columns), options.mode(key, template)))
        return TagRules(rules, ignored)

    def try_on_sample(self, name: str, columns: Mapping[str, Any], tags_of: TagsOf) -> None:
        """Call a function of the user's with a made-up row.

        Raises:
            ConfigError: it uses what is no column, or its tags are malformed.
        """
        sample = Row(name, columns, {key: _sample(column) for key, column in columns.items()})
        try:
            found = tags_of(sample)
            tags = [tag for tag in _collection(name, found) if isinstance(tag, str)]
        except ConfigError:
            raise
        except Exception:  # it makes more of its values than a sample can bear
            tags = []
        for tag in tags:
            try:
                check_tag(tag, self._max_tag_bytes)
            except TagError as error:
                raise ConfigError(f"the tags of {name} are not legal: {error}") from None

    def _checked(self, name: str, columns: Mapping[str, Any], tags_of: TagsOf) -> Callable[[Row], list[str]]:
        """Return a function of the user's as one that makes legal tags, once it has been tried on a made-up row."""
        self.try_on_sample(name, columns, tags_of)

        def legal(row: Row) -> list[str]:
            return list(self._legal(name, tags_of(row)))

        return legal

    def _legal(self, name: str, found: Iterable[str]) -> Iterator[str]:
        for tag in _collection(name, found):
            try:
                yield check_tag(tag, self._max_tag_bytes)
            except TagError as error:
                if not isinstance(tag, str):
                    raise
                # No loader can have such a tag either: there is nothing to invalidate, and no reason to fail a commit.
                log.warning("skipped a tag of %s: %s", name, error)

    def _template(self, name: str, columns: Mapping[str, Any], template: str) -> TagsOf:
        try:
            named = TagTemplates([template], tuple(columns), max_bytes=self._max_tag_bytes)
            kinds = {field: kind_of_column(f"{name}.{field}", columns[field]) for field in named.fields}
            for texts, fields in named.skeletons():
                self._tag_kinds.add_rows(f"watched {name}", texts, [kinds[field] for field in fields])
            makers = {field: text_maker(kind) for field, kind in kinds.items()}
            made = TagTemplates([template], tuple(columns), max_bytes=self._max_tag_bytes, texts=makers)
        except (DeclarationError, TagError) as error:
            raise ConfigError(f"watch of {name}: {error}") from None
        names = tuple(columns)
        return lambda row: made.texts(_Values(row, names))


class _Values(Sequence[Any]):
    """A row's values by their place; none is looked at that is not asked for."""

    def __init__(self, row: Row, names: Sequence[str]) -> None:
        self._row, self._names = row, names

    def __getitem__(self, at: Any) -> Any:
        return getattr(self._row, self._names[at])

    def __len__(self) -> int:
        return len(self._names)


def _sample(column: Any) -> Any:
    """Return a value such as a column may have: the shortest that makes a tag."""
    try:
        kind = column.type.python_type
        return "x" if kind is str else kind()
    except (NotImplementedError, TypeError):
        return "x"


def _collection(name: str, found: Any) -> Iterable[Any]:
    """Return what a function of the user's has returned.

    Raises:
        ConfigError: it is no collection, as where a `return` is missing.
    """
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise ConfigError(f"the tags of {name} must be a collection, () for none, got {found!r}")
    return found

"""What invalidates: the columns that matter, those that are ignored, and how; of `watch` and of triggers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from cacheworkers.errors import ConfigError

Mode = Literal["hard", "soft"]


class TagOptions:
    """The options `columns`, `ignore` and `mode` for the classes, tables and templates of a mapping."""

    def __init__(
        self,
        who: str,
        mapping: Mapping[Any, Any],
        columns: Mapping[Any, Collection[str]] | None,
        ignore: Mapping[Any, Collection[str]] | None,
        mode: Mode | Mapping[Any, Mode],
    ) -> None:
        """
        Args:
            who: whose options, for errors.

        Raises:
            ConfigError: a key is not of the mapping and no template in it, or a value is malformed.
        """
        self._who = who
        self._columns = columns or {}
        self._ignore = ignore or {}
        self._modes: Mapping[Any, Mode] = mode if isinstance(mode, Mapping) else dict.fromkeys(mapping, mode)
        templates = {each for tags in mapping.values() if not callable(tags) for each in tags}
        for option, given in (("columns", self._columns), ("ignore", self._ignore), ("mode", self._modes)):
            for key in given:
                if key not in mapping and (option == "ignore" or key not in templates):
                    raise ConfigError(f"{who}({option}=) names {key!r}, which is not in the mapping")
        for key, each in self._modes.items():
            if each not in ("hard", "soft"):
                raise ConfigError(f'{who}(mode=) must be "hard" or "soft", got {each!r} for {key!r}')
        for option, given in (("columns", self._columns), ("ignore", self._ignore)):
            for key, names in given.items():
                if isinstance(names, str):
                    raise ConfigError(f"{who}({option}=) takes lists of columns, got the string {names!r} for {key!r}")

    def columns(self, key: Any, template: str | None, known: Collection[str] | None = None) -> frozenset[str] | None:
        """Return the columns without which an UPDATE does not concern a tag; None if each one does.

        Args:
            known: those that there are, to check the names by.
        """
        named = self._columns.get(template, self._columns.get(key))
        if named is None:
            return None
        self._check("columns", key, named, known)
        own = frozenset() if template is None else frozenset(re.findall(r"{([^\W\d][\w-]*)", template))
        return frozenset(named) | own  # a row that moves to another tag concerns both

    def ignored(self, key: Any, known: Collection[str] | None = None) -> frozenset[str]:
        """Return the columns whose changes concern no tag."""
        named = self._ignore.get(key, ())
        self._check("ignore", key, named, known)
        return frozenset(named)

    def mode(self, key: Any, template: str | None = None) -> Mode:
        """Return how tags are invalidated."""
        return self._modes.get(template, self._modes.get(key, "hard"))

    def _check(self, option: str, key: Any, named: Collection[str], known: Collection[str] | None) -> None:
        for name in () if known is None else named:
            if known is not None and name not in known:
                raise ConfigError(f"{self._who}({option}=): {key!r} has no column {name!r}; it has {', '.join(known)}")

"""Shell completion of arguments: loaders, the beginnings of calls and of tags, as a cache declares them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from cacheworkers.cache import Cache
from cacheworkers.errors import CacheworkersError

#: Finds the cache of a command's context; raises what a command would say.
Finds = Callable[[click.Context], Cache]


class Completes:
    """Completes arguments with what a cache declares; nothing where none can be found."""

    def __init__(self, finds: Finds) -> None:
        self._finds = finds

    def loaders(self, context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        """Return names of loaders."""
        return self._that_begin(incomplete, context, lambda cache: cache.loaders)

    def calls(self, context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        """Return how calls begin: `product[`."""
        return self._that_begin(incomplete, context, lambda cache: [f"{name}[" for name in cache.loaders])

    def tags(self, context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        """Return how tags begin that loaders declare: `category:`, or all of one that has no field."""
        return self._that_begin(
            incomplete,
            context,
            lambda cache: [head for spec in cache.loaders.values() for head in spec.templates.beginnings],
        )

    def _that_begin(
        self, incomplete: str, context: click.Context, names: Callable[[Cache], Iterable[str]]
    ) -> list[str]:
        try:
            found = set(names(self._finds(context)))
        except (CacheworkersError, click.ClickException):
            return []
        return sorted(name for name in found if name.startswith(incomplete))

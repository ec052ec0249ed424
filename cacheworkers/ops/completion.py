"""What the shell completes: commands, loaders, the beginnings of calls and of tags; in bash also after a colon."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from cacheworkers.cache import Cache
from cacheworkers.errors import CacheworkersError

#: Finds the cache of a command's context; raises what a command would say.
Finds = Callable[[click.Context], Cache]
#: Bash's own name, click's template with two things more: no space after what goes on, as `product[` does.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' response type value
    response=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=cacheworkers-bash_complete $1)
    for completion in $response; do
        IFS=',' read type value <<< "$completion"
        if [[ $type == 'dir' ]]; then COMPREPLY=(); compopt -o dirnames
        elif [[ $type == 'file' ]]; then COMPREPLY=(); compopt -o default
        else
            COMPREPLY+=("$value")
            if [[ $value == *'[' || $value == *: ]]; then compopt -o nospace; fi
        fi
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class Bash(BashComplete):
    """Bash cuts a word at its colons: `shop.cache:cache` and `product:42` are three words each."""

    name = "cacheworkers-bash"  # click's own stays what it is for other programs
    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one to complete, and that one, put together again."""
        words = split_arg_string(os.environ["COMP_WORDS"])
        at = int(os.environ["COMP_CWORD"])
        words = words[: at + 1] + [""] * (at + 1 - len(words))
        whole = [words[0]]
        for before, word in itertools.pairwise(words):
            if word == ":" or before == ":":
                whole[-1] += word
            else:
                whole.append(word)
        return whole[1:-1], whole[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """Return what bash puts in the place of what follows the last colon."""
        _, incomplete = self.get_completion_args()
        begun, colon, _ = incomplete.rpartition(":")
        return f"{item.type},{item.value.removeprefix(begun + colon)}"


add_completion_class(Bash)


def source(command: click.Command, shell: str) -> str:
    """Return the script that makes a shell complete a command."""
    kind: type[ShellComplete] | None = Bash if shell == "bash" else get_completion_class(shell)
    assert kind is not None, f"click completes in {shell}"
    return kind(command, {}, "cacheworkers", "_CACHEWORKERS_COMPLETE").source()


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

"""Mutants: the library with one part of one function or script changed."""

from __future__ import annotations

import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers.store.commands import scripts
from cacheworkers.store.commands.scripts import Script

Mutation = Callable[[pytest.MonkeyPatch], None]


def script(name: str, old: str, new: str) -> Mutation:
    """A script with one part changed."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        found: Script = getattr(scripts, name)
        assert old.encode() in found.source, f"{name} no longer has {old!r}"
        source = found.source.replace(old.encode(), new.encode())
        digest = hashlib.sha1(source, usedforsecurity=False).hexdigest()
        patch.setattr(scripts, name, Script(found.name, source, digest))

    return mutate


def python(owner: Any, name: str, old: str, new: str) -> Mutation:
    """A function of a module, or a method of a class, with one part of its text changed."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        function = getattr(owner, name)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(old) == 1, f"{name} has {old!r} {source.count(old)} times"
        names: dict[str, Any] = {}
        code = compile(source.replace(old, new), inspect.getfile(function), "exec", 0x1000000)  # annotations as text
        exec(code, function.__globals__, names)
        made = names[name]
        patch.setattr(owner, name, made)
        # Those who have imported it by name call it by that name.
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("cacheworkers") and vars(module).get(name) is function:
                patch.setattr(module, name, made)

    return mutate

"""Locates the `Cache` that a command works on: by `--app module:name`, or by the Celery app around it."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import click

from cacheworkers.cache import Cache
from cacheworkers.ops.output import note
from cacheworkers.runtime.wiring import cache_of, caches

#: What `--app` takes.
FORM = "module:name of a Cache, or of an application or factory with one"


def cache_named(app: str) -> Cache:
    """Return the cache that `module:name` names, its loaders declared as in a worker.

    The name is that of a Cache; or of an application with one, or of a factory, `create_app` or `create_app("dev")`,
    which is called: loaders are declared and sessions bound then as in a web process.

    Raises:
        click.ClickException: there is none.
    """
    module_name, _, expression = app.partition(":")
    sys.path.insert(0, os.getcwd())
    before = caches()
    try:
        module = _imported(module_name)
        name, arguments = _parsed(expression)
        value: Any = getattr(module, name) if name else getattr(module, "cache", module)
        is_called = arguments is not None or (inspect.isfunction(value) and _needs_nothing(value))
        if is_called:
            value = _made(app, value, arguments or (), before)
    except (ModuleNotFoundError, AttributeError, ValueError, TypeError, SyntaxError) as error:
        raise click.ClickException(f"--app must be {FORM}, got {app!r}: {error}") from None
    if hasattr(getattr(value, "loader", None), "import_default_modules"):
        return cache_bound_to(value)
    if not (isinstance(value, Cache) or is_called or value is module or callable(value)):
        raise click.ClickException(f"--app must be {FORM}, {app!r} is a {type(value).__name__}")
    cache = value if isinstance(value, Cache) else _only(app, before)
    celery = cache.internals.app
    if celery is not None:
        try:
            celery.loader.import_default_modules()  # what workers import: loaders are declared there
        except Exception as error:
            note(f"the Celery app's modules cannot be imported, and their loaders are missing here: {error!r}")
        if not expression and any(each is celery for each in vars(module).values()):
            cache.internals.runtime.marks.given = f"-A {module_name}"
    return cache


def _parsed(expression: str) -> tuple[str, list[Any] | None]:
    """Return the name that an expression is, and the arguments that it calls it with, if it does.

    Raises:
        ValueError, SyntaxError: it is no name, and no call of one with literals.
    """
    if not expression:
        return "", None
    parsed = ast.parse(expression, mode="eval").body
    called, arguments = (parsed.func, parsed.args) if isinstance(parsed, ast.Call) else (parsed, None)
    if not isinstance(called, ast.Name) or (isinstance(parsed, ast.Call) and parsed.keywords):
        raise ValueError(f"{expression!r} is no name, and no call such as create_app() or create_app('dev')")
    return called.id, None if arguments is None else [ast.literal_eval(each) for each in arguments]


def _made(app: str, factory: Any, arguments: Iterable[Any], before: list[object]) -> Any:
    """Return what a factory makes; if it fails, the cache that was there before it, as where its database is away.

    Raises:
        click.ClickException: it fails, and there is no cache.
    """
    try:
        with _failures(app, "fails"):
            return factory(*arguments)
    except click.ClickException as error:
        if not _made_since(before):
            raise
        note(f"{error}; what it would have bound or declared is missing here")
        return None


def _needs_nothing(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _only(app: str, before: list[object]) -> Cache:
    """Return the one cache that came with an application.

    Raises:
        click.ClickException: there is none, or several.
    """
    made = _made_since(before)
    if len(made) != 1:
        count = f"{len(made) or 'no'} Cache{'s' if len(made) != 1 else ''}"
        raise click.ClickException(f"--app must be {FORM}, {app!r} comes with {count}: name it as module:name")
    return made[0]


def _made_since(before: list[object]) -> list[Cache]:
    return [each for each in caches() if isinstance(each, Cache) and each not in before]


def _imported(name: str) -> ModuleType:
    """Return a module by its name.

    Raises:
        ModuleNotFoundError, ValueError, TypeError: the name is no module's.
        click.ClickException: the module itself fails; the message says in which line.
    """
    with _failures(name, "cannot be imported"):
        return importlib.import_module(name)


@contextlib.contextmanager
def _failures(name: str, what: str) -> Iterator[None]:
    """Translate what the user's own code raises, with the line; what is raised before any of it has run is raised."""
    try:
        yield
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if "importlib" not in frame.filename]
        if len(own) < 2 and not isinstance(error, SyntaxError):  # none of the module's lines has run
            raise
        where = own[1] if len(own) > 1 else None
        at = f", in {os.path.relpath(where.filename)}, line {where.lineno}" if where else ""
        raise click.ClickException(f"{name} {what}: {type(error).__name__}: {error}{at}") from None


def cache_bound_to(celery: Any) -> Cache:
    """Return the cache that is bound to a Celery app.

    Raises:
        click.ClickException: none is.
    """
    celery.loader.import_default_modules()  # the cache may be declared in a module of tasks
    cache = cache_of(celery)
    if not isinstance(cache, Cache):
        raise click.ClickException(f"no Cache is bound to {celery!r}: import the module that makes it in the app's own")
    return cache


def locate_cache(group: click.Context) -> Cache:
    """Return the cache that the options before a command name, or that is bound to the Celery app around them.

    Raises:
        click.ClickException: there is none.
    """
    app = group.params.get("app")
    if app is not None:
        return cache_named(app)
    celery = getattr(group.obj, "app", None)
    if celery is not None:
        return cache_bound_to(celery)
    raise click.UsageError("--app (-A) must be module:name of a Cache, or CACHE_APP be set")

"""Locates the `Cache` that a command works on: by `--app module:name`, or by the Celery app around it."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType
from typing import Any

import click

from cacheworkers.cache import Cache
from cacheworkers.ops.output import note
from cacheworkers.runtime.wiring import cache_of


def found(app: str) -> Cache:
    """Return the cache that `module:name` names, its loaders declared as in a worker.

    Raises:
        click.ClickException: there is none.
    """
    module, _, name = app.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        cache = getattr(_imported(module), name or "cache")
    except (ModuleNotFoundError, AttributeError, ValueError, TypeError) as error:
        raise click.ClickException(f"--app must be module:name of a Cache, got {app!r}: {error}") from None
    if not isinstance(cache, Cache):
        raise click.ClickException(f"--app must be module:name of a Cache, {app!r} is a {type(cache).__name__}")
    celery = cache.internals.app
    if celery is not None:
        try:
            celery.loader.import_default_modules()  # what workers import: loaders are declared there
        except Exception as error:
            note(f"the Celery app's modules cannot be imported, and their loaders are missing here: {error!r}")
    return cache


def _imported(name: str) -> ModuleType:
    """Return a module by its name.

    Raises:
        ModuleNotFoundError, ValueError, TypeError: the name is no module's.
        click.ClickException: the module itself fails; the message says in which line.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        if len(own) < 2 and not isinstance(error, SyntaxError):  # none of the module's lines has run
            raise
        where = own[1] if len(own) > 1 else None
        at = f", in {os.path.relpath(where.filename)}, line {where.lineno}" if where else ""
        raise click.ClickException(f"{name} cannot be imported: {type(error).__name__}: {error}{at}") from None


def bound(celery: Any) -> Cache:
    """Return the cache that is bound to a Celery app.

    Raises:
        click.ClickException: none is.
    """
    celery.loader.import_default_modules()  # the cache may be declared in a module of tasks
    cache = cache_of(celery)
    if not isinstance(cache, Cache):
        raise click.ClickException(f"no Cache is bound to {celery!r}: import the module that makes it in the app's own")
    return cache


def of_group(group: click.Context) -> Cache:
    """Return the cache that the options before a command name, or that is bound to the Celery app around them.

    Raises:
        click.ClickException: there is none.
    """
    app = group.params.get("app")
    if app is not None:
        return found(app)
    celery = getattr(group.obj, "app", None)
    if celery is not None:
        return bound(celery)
    raise click.UsageError("--app (-A) must be module:name of a Cache, or CACHE_APP be set")

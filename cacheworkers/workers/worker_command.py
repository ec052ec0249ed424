"""The command that starts a worker of a Celery app, for messages that say that one is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from celery import Celery

#: Attributes of a module under which `celery -A module` looks for its app.
_FOUND_BY_CELERY = ("app", "celery")


def worker_command(app: Celery, queues: Sequence[str] = ()) -> str:
    """Return the command, with `-Q` if queues are given."""
    named = f" -Q {','.join(queues)}" if queues else ""
    return f"celery -A {app_path(app)} worker{named}"


def app_path(app: Celery) -> str:
    """Return what `celery -A` takes for an app: `shop.tasks`, or `shop.tasks:queue` where Celery needs the name."""
    found = []
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(("celery.", "cacheworkers.")) or not hasattr(module, "__dict__"):
            continue
        for name, value in list(vars(module).items()):
            if value is app:
                found.append((module_name, name))
    if not found:
        return app.main or "MODULE"
    # The module that makes it is imported by those that use it: its name is where the app says, or else the shortest.
    module_name, name = min(found, key=lambda each: (each[0] != app.main, name_rank(each[1]), len(each[0])))
    if module_name == "__main__":
        module_name = Path(getattr(sys.modules["__main__"], "__file__", "") or "MODULE").stem
    return module_name if name in _FOUND_BY_CELERY else f"{module_name}:{name}"


def name_rank(name: str) -> int:
    """Return how far from Celery's own names an attribute is."""
    return _FOUND_BY_CELERY.index(name) if name in _FOUND_BY_CELERY else len(_FOUND_BY_CELERY)

"""The command that starts a worker, for messages that say that one is missing: its app, its modules and its options."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

#: What is said where importing the app may not be enough.
LATE = "-A the module that calls your factory, if that configures the app or binds the sessions"
#: Options that may be printed for somebody to paste: those of another process come from the store, which may be forged.
_PLAIN = re.compile(r"-A [\w.:]+( -I [\w.,]+)?")
#: Attributes of a module under which `celery -A module` looks for its app.
_FOUND_BY_CELERY = ("app", "celery")


def worker_command(
    app: Celery,
    queues: Sequence[str] = (),
    modules: Iterable[str] = (),
    *,
    options: str = "",
    is_bound_late: bool = False,
) -> str:
    """Return the command, with `-Q` if queues are given.

    Args:
        modules: those that declare loaders; `-I` has the worker import those that its app does not name.
        options: those that workers of this application are started with, where one has said so: it takes their place.
        is_bound_late: the sessions were bound to no engine when the app was: what imports the app need not bind them.
    """
    taken = f" -Q {','.join(queues)}" if queues else ""
    if options:
        named, *its_own = options.partition(" -I ")  # an option of `worker`, unlike -A
        return f"celery {named} worker{''.join(its_own)}{taken}"
    path = app_path(app)
    imported = {*(app.conf.include or ()), *(app.conf.imports or ()), path.partition(":")[0], ""}
    missing = [each for each in dict.fromkeys(modules) if each not in imported]
    included = f" -I {','.join(missing)}" if missing else ""
    late = f"  # {LATE}" if is_bound_late else ""
    return f"celery -A {path} worker{included}{taken}{late}"


def worker_options_in(words: Sequence[str]) -> str:
    """Return the `-A` and `-I` of a `celery` command line; "" where it is another program's, or names no app."""
    program = PurePath(words[0]) if words else PurePath()
    if "celery" not in (program.stem, program.parent.name):  # the script, or python -m celery
        return ""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-A", "--app", default="")
    parser.add_argument("-I", "--include", default="")
    found, _ = parser.parse_known_args(words[1:])
    return safe_options(f"-A {found.app}" + (f" -I {found.include}" if found.include else ""))


def safe_options(options: str) -> str:
    """Return options of a worker if they are names of modules and nothing else; "" if not."""
    return options if _PLAIN.fullmatch(options) else ""


def importable_name(module: str) -> str:
    """Return the name by which a worker can import a module: a script's own instead of `__main__`; "" if it has none.

    A notebook and an interactive session have none.
    """
    if module not in ("__main__", "__mp_main__"):  # the second in a process that multiprocessing has spawned
        return module
    main = sys.modules.get(module)
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m shop.web
        return str(spec.name).removesuffix(".__main__")
    return Path(getattr(main, "__file__", "") or "").stem


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
    module_name, name = min(found, key=lambda each: (each[0] != app.main, _name_rank(each[1]), len(each[0])))
    module_name = importable_name(module_name) or "MODULE"
    return module_name if name in _FOUND_BY_CELERY else f"{module_name}:{name}"


def _name_rank(name: str) -> int:
    """Return how far from Celery's own names an attribute is."""
    return _FOUND_BY_CELERY.index(name) if name in _FOUND_BY_CELERY else len(_FOUND_BY_CELERY)

"""The command that a log line names starts a worker that knows the loaders."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
from celery import Celery

from cacheworkers.workers.worker_command import importable_name, worker_command, worker_options_in


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """An app that the module `bookshop` makes."""
    app = Celery("bookshop", set_as_current=False)
    module = types.ModuleType("bookshop")
    module.celery = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bookshop", module)
    return app


@pytest.mark.parametrize(
    ("include", "modules", "expected"),
    [
        ((), [], "celery -A bookshop worker -Q cw.miss"),
        ((), ["bookshop", ""], "celery -A bookshop worker -Q cw.miss"),
        ((), ["bookcache", "bookcache"], "celery -A bookshop worker -I bookcache -Q cw.miss"),
        (("bookcache",), ["bookcache", "pages"], "celery -A bookshop worker -I pages -Q cw.miss"),
    ],
)
def test_a_worker_imports_the_modules_that_its_app_does_not_name(
    app: Celery, include: tuple[str, ...], modules: list[str], expected: str
) -> None:
    app.conf.include = include

    assert worker_command(app, ["cw.miss"], modules) == expected


@pytest.mark.parametrize(
    ("module", "spec", "file", "expected"),
    [
        ("shop.pages", None, None, "shop.pages"),
        ("__main__", None, "/srv/shop.py", "shop"),
        ("__main__", "shop.web", "/srv/shop/web.py", "shop.web"),
        ("__main__", "shop.__main__", "/srv/shop/__main__.py", "shop"),
        ("__mp_main__", None, "/srv/shop.py", "shop"),  # a process that multiprocessing has spawned
        ("__main__", None, None, ""),  # a notebook
    ],
)
def test_the_name_by_which_a_worker_imports_what_runs_as_a_script(
    monkeypatch: pytest.MonkeyPatch, module: str, spec: str | None, file: str | None, expected: str
) -> None:
    main = types.ModuleType("__main__")
    main.__spec__ = None if spec is None else importlib.util.spec_from_loader(spec, None)
    if file is not None:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, module, main)

    assert importable_name(module) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("/venv/bin/celery -A make_celery worker -c 2 -Q cw.miss", "-A make_celery"),
        ("/lib/celery/__main__.py --app=make_celery:app worker", "-A make_celery:app"),
        ("celery.exe -Amake_celery worker -Pthreads", "-A make_celery"),
        ("celery --app make_celery worker --include shop.pages -l INFO", "-A make_celery -I shop.pages"),
        ("celery -b redis://:secret@host/0 worker", ""),
        ("celery -A shop;reboot worker", ""),
        ("pytest -q tests/unit", ""),
        ("run.py -A production -I", ""),  # another program's options, of which argparse would make it end
    ],
)
def test_the_options_that_a_worker_was_started_with(words: str, expected: str) -> None:
    assert worker_options_in(words.split()) == expected


def test_a_worker_is_started_as_others_were(app: Celery) -> None:
    options = "-A make_celery"

    command = worker_command(app, ["cw.miss"], ["pages"], options=options, is_bound_late=True)

    assert command == "celery -A make_celery worker -Q cw.miss"


def test_who_binds_late_is_asked_to_name_what_binds(app: Celery) -> None:
    command = worker_command(app, is_bound_late=True)

    late = "-A the module that calls your factory, if that configures the app or binds the sessions"
    assert command == f"celery -A bookshop worker  # {late}"

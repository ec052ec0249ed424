"""Checks of shell lines: the program, its command and its options exist, and the arguments parse."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import uvicorn
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery
from flower.command import flower
from granian.cli import cli as granian
from packaging.requirements import Requirement

from cacheworkers.ops.cli import main

ROOT = Path(__file__).resolve().parents[2]


class BadLine(AssertionError):
    """A shell line cannot work."""


class Incomplete(BadLine):
    """A shell line is right as far as it goes."""


def check(line: str, files: set[str]) -> None:
    """Check one line of a page.

    Args:
        files: what the page has had the reader write.

    Raises:
        BadLine: the program, a command, an option or a file does not exist, or nobody knows how to check it.
    """
    words = shlex.split(line, comments=True)
    if words and words[-1] == "&":
        words.pop()
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    if not words:
        return
    known = _CHECKS.get(words[0])
    if known is None:
        raise BadLine(f"no check for {words[0]!r} in {line!r}; checked are {', '.join(sorted(_CHECKS))}")
    known(words[1:], files)


def lines_of(text: str) -> list[str]:
    """Return a block's commands, with continued lines joined and prompts taken off."""
    joined = text.replace("\\\n", " ")
    return [line.strip().removeprefix("$ ") for line in joined.splitlines() if line.strip()]


def _cacheworkers(words: list[str], files: set[str]) -> None:
    _group(main, "cacheworkers", words)


def _celery(words: list[str], files: set[str]) -> None:
    commands = {**celery.commands, "flower": flower}
    about = CLIContext(app=Celery("shop"), no_color=True, workdir=None)
    _group(click.Group("celery", commands, params=celery.params), "celery", words, about)


def _command(command: click.Command) -> Callable[[list[str], set[str]], None]:
    def parsed(words: list[str], files: set[str]) -> None:
        _parse(command, words, None)

    return parsed


def _group(group: click.Group, name: str, words: list[str], about: object = None) -> None:
    """Parse a line of a program with commands: its own options, then the command's."""
    if {"--help", "--version"} & set(words):
        return
    if "CACHE_APP" not in os.environ and not {"-A", "--app"} & set(words):
        words = ["-A", "shop:cache", *words]
    context = _parse(group, words, None)
    context.obj = about
    rest = [*context._protected_args, *context.args]
    if not rest:
        raise Incomplete(f"{name} needs a command, one of {', '.join(sorted(group.commands))}")
    command = group.commands.get(rest[0])
    if command is None:
        raise BadLine(f"{name} has no command {rest[0]!r}; it has {', '.join(sorted(group.commands))}")
    _parse(command, rest[1:], context)


def _parse(command: click.Command, words: list[str], parent: click.Context | None) -> click.Context:
    try:
        return command.make_context(command.name or "", list(words), parent=parent)
    except click.exceptions.Exit:
        return click.Context(command)
    except (click.MissingParameter, click.BadOptionUsage) as error:
        raise Incomplete(f"{command.name} {' '.join(words)}: {error.format_message()}") from None
    except click.BadParameter as error:
        if "does not exist" in str(error) or "No such file" in str(error):  # a file of the reader's
            return click.Context(command)
        if error.param is not None and (error.param.name or "").upper() in words:  # a placeholder: `completion SHELL`
            raise Incomplete(f"{command.name} {' '.join(words)}: {error.format_message()}") from None
        raise BadLine(f"{command.name} {' '.join(words)}: {error.format_message()}") from None
    except click.ClickException as error:
        raise BadLine(f"{command.name} {' '.join(words)}: {error.format_message()}") from None


def _make(words: list[str], files: set[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for word in words:
        if "=" not in word and word not in targets:
            raise BadLine(f"make has no target {word!r}; it has {', '.join(sorted(targets))}")


def _python(words: list[str], files: set[str]) -> None:
    match words:
        case ["-m", "pip", *rest]:
            _pip(rest, files)
        case ["-m", module, *_]:
            if importlib.util.find_spec(module) is None:
                raise BadLine(f"python -m {module}: there is no such module")
            if words[1:3] == ["django", "startproject"]:
                files.add("manage.py")
        case ["-c", code]:
            compile(code, "-c", "exec")
        case [script, *_] if not script.startswith("-"):
            if script not in files and not (ROOT / script).exists():
                raise BadLine(f"python {script}: the page writes no such file, and the project has none")
        case _:
            raise BadLine(f"python {' '.join(words)}: takes -m module, -c code, or a file")


def _pip(words: list[str], files: set[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if words[:1] != ["install"]:
        raise BadLine(f"pip {' '.join(words)}: only install is checked")
    for word in words[1:]:
        if word.startswith("-"):
            continue
        wanted = Requirement(word)
        if wanted.name == "cacheworkers" and not wanted.extras <= set(extras):
            raise BadLine(f"{word}: extras are {', '.join(sorted(extras))}")


def _pytest(words: list[str], files: set[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        try:
            pytest.Config.fromdictargs({}, [word for word in words if word.startswith("-")])
        except pytest.UsageError as error:
            raise BadLine(f"pytest {' '.join(words)}: {error}") from None


def _export(words: list[str], files: set[str]) -> None:
    for word in words:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", word):
            raise BadLine(f"export takes NAME=value, got {word!r}")


def _source(words: list[str], files: set[str]) -> None:
    if len(words) != 1:
        raise BadLine(f"source takes one file, got {words}")


def _compose(words: list[str], files: set[str]) -> None:
    services = set(re.findall(r"^  ([a-z-]+):$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE))
    for service in re.findall(r"([a-z-]+)=\d+", " ".join(words)):
        if service not in services:
            raise BadLine(f"docker compose has no service {service!r}; it has {', '.join(sorted(services))}")


_CHECKS: dict[str, Callable[[list[str], set[str]], None]] = {
    "cacheworkers": _cacheworkers,
    "celery": _celery,
    "docker": _compose,
    "export": _export,
    "granian": _command(granian),
    "make": _make,
    "pip": _pip,
    "pytest": _pytest,
    "python": _python,
    "source": _source,
    "uvicorn": _command(uvicorn.main),
}

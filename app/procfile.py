"""Procfile: one named command a line.  `python -m app.procfile NAME` becomes that process."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_LINE = re.compile(r"([A-Za-z0-9_-]+):\s*(\S.*)")


def parse(text: str) -> dict[str, str]:
    """Return name -> command, in the file's order; empty lines and lines that begin with # do not count.

    Raises:
        ValueError: a line is not `name: command`, or a name comes twice.
    """
    commands: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"Procfile line {number} must be `name: command`, got {line!r}")
        name, command = match.groups()
        if name in commands:
            raise ValueError(f"Procfile line {number} names {name!r} again; names are unique")
        commands[name] = command
    return commands


def argv(command: str) -> list[str]:
    """Return how to start a command line: the shell fills in `$PORT` and the like, then becomes the command.

    So a signal to the process reaches the command, not a shell in front of it.
    """
    return ["/bin/sh", "-c", f"exec env {command}"]


def main(arguments: list[str], procfile: Path = Path("Procfile")) -> None:
    """Become one process of the Procfile: containers start the same commands as `make up`."""
    commands = parse(procfile.read_text())
    if len(arguments) != 1 or arguments[0] not in commands:
        sys.exit(f"usage: python -m app.procfile NAME, where NAME is one of {', '.join(commands)}")
    words = argv(commands[arguments[0]])
    os.execv(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Tokens: random names of claims and loads, drawn from the system many at a time."""

from __future__ import annotations

import os

#: Bytes of a token: 16 hex digits.
_BYTES = 8
#: How many are drawn together.  Drawing lets go of the interpreter, which busy threads then give back late.
_DRAWN = 64


class _Tokens:
    """What this process has drawn and not used; a fork, also one that ran no hooks, draws its own."""

    def __init__(self) -> None:
        self._left: list[str] = []
        self._pid = 0

    def __call__(self) -> str:
        """Return a token that nobody else has."""
        while True:
            if self._pid == os.getpid():
                try:
                    return self._left.pop()  # atomic in a free-threaded build too, unlike next()
                except IndexError:
                    pass
            drawn = os.urandom(_BYTES * _DRAWN)
            # In this order: a thread that sees the new process must not see the parent's tokens.
            self._left = [drawn[at : at + _BYTES].hex() for at in range(0, len(drawn), _BYTES)]
            self._pid = os.getpid()


new_token = _Tokens()

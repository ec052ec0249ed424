"""needs_extra: an import that fails because an optional package is missing names the extra that installs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Import optional packages within.

    Raises:
        ModuleNotFoundError: one is not installed; the text says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        text = f"No module named {error.name!r}: pip install 'cacheworkers[{name}]'"
        raise ModuleNotFoundError(text, name=error.name) from None

"""Embedded servers and a faulty network: public, for users' tests too."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cacheworkers.testing.fault_proxy import FaultProxy
    from cacheworkers.testing.servers import Postgres, Valkey

#: Public name -> the module that defines it.  pytest imports this package in every run, by the plugin's entry point.
_DEFINED_IN = {
    "FaultProxy": "fault_proxy",
    "Postgres": "servers",
    "Valkey": "servers",
}

__all__ = ["FaultProxy", "Postgres", "Valkey"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

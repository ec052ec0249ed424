"""Embedded servers, a faulty network and the step scheduler: public, for users' tests too."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cacheworkers.testing.fault_proxy import FaultProxy
    from cacheworkers.testing.servers import Postgres, Valkey
    from cacheworkers.testing.step_scheduler import Stepper

#: Public name -> the module that defines it.  pytest imports this package in every run, by the plugin's entry point.
_DEFINED_IN = {
    "FaultProxy": "fault_proxy",
    "Postgres": "servers",
    "Stepper": "step_scheduler",
    "Valkey": "servers",
}

__all__ = ["FaultProxy", "Postgres", "Stepper", "Valkey"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Embedded servers, a faulty network and the step scheduler: public, for users' tests too."""

from cacheworkers.testing.proxy import FaultProxy
from cacheworkers.testing.servers import Postgres, Valkey
from cacheworkers.testing.steps import Stepper

__all__ = ["FaultProxy", "Postgres", "Stepper", "Valkey"]

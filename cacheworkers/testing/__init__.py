"""Embedded servers, a faulty network and the step scheduler: public, for users' tests too."""

from cacheworkers.testing.fault_proxy import FaultProxy
from cacheworkers.testing.servers import Postgres, Valkey
from cacheworkers.testing.step_scheduler import Stepper

__all__ = ["FaultProxy", "Postgres", "Stepper", "Valkey"]

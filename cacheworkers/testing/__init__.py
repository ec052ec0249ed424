"""Embedded servers and the step scheduler: public, for users' tests too."""

from cacheworkers.testing.servers import Postgres, Valkey
from cacheworkers.testing.steps import Stepper

__all__ = ["Postgres", "Stepper", "Valkey"]

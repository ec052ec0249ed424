"""What drives a flow stands in `core`: the store's own exchanges are flows too."""

from cacheworkers.core.driver import Flow, Step, arun, run

__all__ = ["Flow", "Step", "arun", "run"]

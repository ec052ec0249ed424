"""How far a warm job is, as a line every few seconds, and what holds it back."""

from __future__ import annotations

from cacheworkers.config import Queues
from cacheworkers.flows.warm_up import WarmUp
from cacheworkers.ops.explanation_text import duration_text
from cacheworkers.ops.output import counted

#: Between two lines, seconds.
LINE_EVERY = 5.0
#: Seconds without progress after which a line says that no worker takes anything.
STUCK_AFTER = 5.0


def line(loader: str, state: WarmUp, a_second: float, queues: Queues) -> str:
    """Return how far it is; `a_second` is how many calls have been loaded a second."""
    tried = state.done + state.failed
    says = (
        f"{loader}: {tried:,} of {counted(state.calls, 'call', 'calls')} ({state.share:.0%} fresh), {a_second:,.1f}/s"
    )
    if a_second > 0:
        says += f", {duration_text((state.calls - tried) / a_second)} left"
    if state.failed:
        says += f", {state.failed:,} failed"
    why = waits_for(state, queues)
    return f"{says}; {why}" if why else says


def waits_for(state: WarmUp, queues: Queues) -> str:
    """Return what a job waits for, or goes on in spite of; empty for nothing."""
    if state.is_waiting:
        return f"waiting for readers' misses, which go first, in {queues.miss}"
    if state.stuck_for >= STUCK_AFTER:
        return f"no worker has taken anything from {queues.warm} for {state.stuck_for:.0f} s"
    if state.unserved_misses:
        return f"no worker takes the {state.unserved_misses:,} messages in {queues.miss}: they are not waited for"
    return ""

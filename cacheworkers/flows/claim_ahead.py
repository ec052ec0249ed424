"""ClaimAhead: a crowd's claim, sent before its leader's look has been answered.

A turn of an event loop in which thousands of tasks begin to read takes longer than all else of a miss, and what the
store answers is read after it.  So the claim goes out while they come.  It says, as after a look, that nothing was
found: where something is there, nothing is claimed.
"""

from __future__ import annotations

import msgspec

from cacheworkers.core.driver import Flow
from cacheworkers.core.tokens import new_token
from cacheworkers.errors import StoreError
from cacheworkers.flows.ports import LoaderSpec, LoadRequest, Ports
from cacheworkers.store.commands.replies import Claim, Claimed, Moved
from cacheworkers.store.commands.steps import Submitted


class ClaimAhead(msgspec.Struct, frozen=True):
    """A claim under way, and its token."""

    token: str
    step: Submitted[Claim]


def claim_ahead(ports: Ports, loader: LoaderSpec, call: str) -> ClaimAhead | None:
    """Claim a call of which nothing is known, with its message; None where that takes more than a write.

    Whether the leader comes to ask what became of it or not, no lease is left without a message.
    """
    token = new_token()
    enqueue = ports.message_of(LoadRequest(loader.name, call, token, "", "miss"))
    if enqueue is None:
        return None

    def note(claim: Claim | Exception) -> None:
        if isinstance(claim, Claimed):
            if claim.is_enqueued:
                enqueue.note_sent()
            else:
                ports.release_soon(call, token)

    message = (enqueue.key, *enqueue.message)
    step = ports.store.claim(call, token, lease_for=loader.load_for, enqueue=message).submit(note)
    return None if step is None else ClaimAhead(token, step)


def outcome_of(ahead: ClaimAhead) -> Flow[Claim]:
    """Wait for what became of it: granted with its message; or "moved", so that the read looks again and claims itself.

    Another's lease may have ended since that was answered, before such ends were reported to this process.
    """
    try:
        claim: Claim = yield ahead.step
    except StoreError:  # a server that does not know the script yet, say: the read's own exchanges see to it
        return Moved()
    return claim if isinstance(claim, Claimed) and claim.is_enqueued else Moved()

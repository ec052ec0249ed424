"""MessageTemplate: the message of one load as Celery and kombu have made it, filled in for each request.

A claim that enqueues its message in the same script needs the message's bytes.  Celery takes a third of a millisecond
to make them, and most of them are the same each time.  So two messages are made, and the first, filled in with what the
second is about, must be the second: else there is no template, and messages are published one by one.
"""

from __future__ import annotations

import base64
import datetime
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from cacheworkers.flows.ports import LoadRequest
from cacheworkers.workers.broker_queues import SENT_AT
from cacheworkers.workers.task_messages import SNAPSHOTS, rows_of, shown

#: Two requests that have nothing in common.
_PROBES = (
    LoadRequest("", "first[1]", "0" * 16, "", "miss", snapshot="1 2"),
    LoadRequest("", 'second["\N{LATIN SMALL LETTER E WITH ACUTE}"]', "f" * 16, "ab" * 8, "miss", snapshot="30 40"),
)
#: Makes the message of a request with this id: the queue's key, and the message as JSON.
Make = Callable[[LoadRequest, str], tuple[str, bytes]]


class MessageTemplate:
    """A message to fill in.

    Attributes:
        key: of the queue, a list in Redis.
    """

    def __init__(self, make: Make, lives_for: datetime.timedelta) -> None:
        """
        Args:
            lives_for: how long after it is sent a message expires.

        Raises:
            ValueError, TypeError, KeyError: this version of kombu or Celery, or this app, makes other messages.
        """
        self._lives_for = lives_for
        #: Stands where the snapshot goes; no text that anybody else could send.
        self._mark = uuid.uuid4().hex
        made = [(probe, *make(probe, str(uuid.uuid4()))) for probe in _PROBES]
        [(_, self.key, first), (probe, key, second)] = made
        self._message = _opened(first)
        wanted = _opened(second)
        headers, properties = wanted["headers"], wanted["properties"]
        moment = datetime.datetime.fromisoformat(headers["expires"]) - lives_for
        filled = self._filled(
            probe, headers["id"], properties["delivery_tag"], moment, headers[SENT_AT], probe.snapshot
        )
        if "expiration" in properties:  # what is left by the time it is sent
            properties["expiration"] = filled["properties"]["expiration"]
        if key != self.key or _opened(msgspec.json.encode(filled)) != wanted:
            raise ValueError(f"messages differ in more than their requests: {filled} and {wanted}")

    def message(self, request: LoadRequest) -> tuple[bytes, bytes]:
        """Return the message of a request that is sent now: what comes before its claim's snapshot, and the rest."""
        sent_at = time.time()
        moment = datetime.datetime.fromtimestamp(sent_at, datetime.UTC)
        task = str(uuid.uuid4())
        filled = self._filled(request, task, task, moment, sent_at, self._mark)  # a tag is unique where an id is
        head, _, tail = msgspec.json.encode(filled).partition(self._mark.encode())
        return head, tail

    def _filled(
        self, request: LoadRequest, task: str, tag: str, moment: datetime.datetime, sent_at: float, snapshot: str
    ) -> dict[str, Any]:
        template = self._message
        args, _, embedded = template["body"]
        body = msgspec.json.encode([args, {"asks": rows_of([request])}, embedded])
        headers = {
            **template["headers"],
            "id": task,
            "root_id": task,
            "expires": (moment + self._lives_for).isoformat(),
            "argsrepr": shown([request]),
            SENT_AT: sent_at,
            SNAPSHOTS: [snapshot],
        }
        properties = {**template["properties"], "correlation_id": task, "delivery_tag": tag}
        if "argsrepr" in properties:
            properties["argsrepr"] = headers["argsrepr"]
        if "expiration" in properties:  # for brokers that heed it, milliseconds
            properties["expiration"] = str(int(self._lives_for.total_seconds() * 1000))
        encoded = base64.b64encode(body).decode()
        return {**template, "body": encoded, "headers": headers, "properties": properties}


def _opened(message: bytes) -> dict[str, Any]:
    """Return a message with its body decoded."""
    found: dict[str, Any] = msgspec.json.decode(message)
    if found["properties"]["body_encoding"] != "base64" or found["content-type"] != "application/json":
        raise ValueError(f"a body of {found['content-type']} in {found['properties']['body_encoding']}")
    return {**found, "body": msgspec.json.decode(base64.b64decode(found["body"]))}

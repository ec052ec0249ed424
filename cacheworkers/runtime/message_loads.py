"""Message loads: runs the load requests of one task message, and refuses those that this release cannot read."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from cacheworkers.core.driver import Flow
from cacheworkers.errors import CacheworkersError, CallError, LoadError, StoreError
from cacheworkers.events import MalformedTask, UnknownTask
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoaderSpec, LoadRequest, Ports
from cacheworkers.runtime.registry import LoaderRegistry
from cacheworkers.runtime.wiring import Runtime
from cacheworkers.workers.version_mismatch import mismatch


def run_message_loads(
    runtime: Runtime, loaders: LoaderRegistry, loader: str, requests: Sequence[LoadRequest], is_redelivered: bool
) -> Flow[list[CacheworkersError]]:
    """Load what the requests name, and return why some of them failed.

    Raises:
        UnknownLoader: this process does not declare the loader.
        StoreUnavailable: the store does not answer.
    """
    if loader not in loaders:
        runtime.emit(UnknownTask(loader, len(requests)))
        runtime.refuse(requests, f"no loader is named {loader}")
    spec, ports = loaders.named(loader), runtime.ports
    readable = _readable(runtime, spec, requests)
    if not readable:
        return []
    runtime.marks.note()
    results = (yield from load(ports, spec, readable, ports.worker, is_redelivered=is_redelivered)).values()
    for result in results:
        if result.outcome == "unstored" and isinstance(result.error, LoadError):
            _note_unstored(ports, loader, result.error)
    return [result.error for result in results if result.outcome == "failed" and result.error is not None]


def _readable(runtime: Runtime, spec: LoaderSpec, requests: Sequence[LoadRequest]) -> list[LoadRequest]:
    """Return the requests that this release can read, and refuse the others."""
    readable, refused, reason = [], [], ""
    for request in requests:
        try:
            spec.signature.parse(request.call)
            bytes.fromhex(request.seen)
            readable.append(request)
        except (CallError, ValueError) as error:
            reason = mismatch(spec.name, spec.policy.version, request.call) or str(error)
            runtime.emit(MalformedTask(f"cacheworkers.load.{spec.name}", reason))
            refused.append(request)
    if refused:
        runtime.refuse(refused, reason)
    return readable


def _note_unstored(ports: Ports, loader: str, error: LoadError) -> None:
    with contextlib.suppress(StoreError):
        ports.store.note_unstored(loader, f"{error.call}: {error.text}").run()

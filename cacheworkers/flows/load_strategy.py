"""Means: how a read has its call loaded; a read of its own does it alone, those of a `get_many` together."""

from __future__ import annotations

from typing import Any, Protocol

from cacheworkers.core.driver import Flow
from cacheworkers.flows.load import Result, load
from cacheworkers.flows.ports import LoaderSpec, Loading, LoadRequest, Ports


class LoadStrategy(Protocol):
    """What a read needs besides the store."""

    def submit(self, ports: Ports, ask: LoadRequest) -> Flow[bool]:
        """Hand an ask to the dispatcher; False when there is no room: the caller gives the lease back."""
        ...

    def load(self, ports: Ports, loader: LoaderSpec, ask: LoadRequest) -> Flow[Result]:
        """Load here, under the lease that the ask names; raises what `flows.load.load` raises."""
        ...

    def run(self, ports: Ports, loader: LoaderSpec, loading: Loading) -> Flow[dict[str, Any]]:
        """Run the loader here and store nothing; call text -> value or exception."""
        ...


class SingleLoads:
    """The means of a read of its own."""

    def submit(self, ports: Ports, ask: LoadRequest) -> Flow[bool]:
        """Hand an ask to the dispatcher."""
        yield from ()
        return ports.dispatcher.submit(ask)

    def load(self, ports: Ports, loader: LoaderSpec, ask: LoadRequest) -> Flow[Result]:
        """Load here, under the lease that the ask names."""
        results = yield from load(ports, loader, [ask], ports.reader)
        return results[ask.call]

    def run(self, ports: Ports, loader: LoaderSpec, loading: Loading) -> Flow[dict[str, Any]]:
        """Run the loader here and store nothing."""
        values: dict[str, Any] = yield ports.reader.step(loader, loading)
        return values


SINGLE = SingleLoads()

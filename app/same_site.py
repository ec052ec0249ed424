"""Whether a request comes from a page of the demo's own: no other site may press its buttons or change its prices."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection


def is_ours(host: str, origin: str, names: Collection[str] = ()) -> bool:
    """Return whether a request is for this server by an address of its own, and from a page of that address.

    A name that another site points to this machine (DNS rebinding) is that site's Host, so only numbers, localhost and
    the given names count.

    Args:
        host, origin: the request's headers; an empty origin is a client that is no browser.
        names: host names without ports.
    """
    if origin and origin.partition("://")[2] != host:
        return False
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name == "localhost" or (name and name in names):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True

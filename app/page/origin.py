"""Whose requests the page answers."""

from __future__ import annotations

import ipaddress


def is_ours(host: str, origin: str) -> bool:
    """Return whether a request is for this page, from this page: no other site may press its buttons.

    A name that another site points here would be its own Host: only numbers and localhost count.
    """
    if origin and origin.partition("://")[2] != host:
        return False
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True

"""Whether entries are safe on a server, by the fields of its INFO: neither too old, nor free to evict tag sets."""

from __future__ import annotations

from typing import Any

from cacheworkers.errors import StoreError, UnsafeStore

#: They evict no tag sets, and leases last of all.
SAFE_POLICIES = ("noeviction", "volatile-lru", "volatile-lfu")
_OLDEST = 7


def info_of(reply: Any) -> dict[str, str]:
    """Return the fields that INFO answered."""
    text = reply.decode() if isinstance(reply, bytes) else str(reply)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def check_server(info: dict[str, str], where: str, *, allows_evicting: bool) -> None:
    """Return if entries, tag sets and leases are safe on a server.

    Raises:
        UnsafeStore: it may evict tag sets or leases.
        StoreError: it is too old.
    """
    policy = info.get("maxmemory_policy", "noeviction")
    if policy not in SAFE_POLICIES and not allows_evicting:
        raise UnsafeStore(
            f"the store at {where} has maxmemory-policy {policy}: it may evict tag sets or leases, and "
            f"with them invalidations; set one of {', '.join(SAFE_POLICIES)}, or allow_evicting_store=True"
        )
    version = info.get("redis_version", str(_OLDEST))
    if int(version.split(".")[0]) < _OLDEST:
        raise StoreError(f"the store at {where} is version {version}; at least Redis 7.0 or Valkey 7.2")

"""Where the store is: its URL, taken apart."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from cacheworkers.errors import ConfigError


class Address:
    """A parsed store URL.

    Attributes:
        kind: standalone, sentinel or cluster.
        url: as redis-py takes it.
        shown: without a password.
        nodes: where the Sentinels are, or the one node of a Cluster that the URL names.
        service, database: what the Sentinels call the master, and which database.
    """

    __slots__ = ("database", "kind", "nodes", "service", "shown", "url")

    def __init__(
        self, kind: str, url: str, nodes: list[tuple[str, int]] | None = None, service: str = "", database: int = 0
    ) -> None:
        self.kind = kind
        self.url = url
        self.nodes = nodes or []
        self.service = service
        self.database = database
        parts = urlsplit(url)
        self.shown = f"{parts.scheme}://{parts.hostname or parts.path}" + (
            f":{parts.port}" if kind != "sentinel" and parts.port else ""
        )


def parse_url(url: str) -> Address:
    """Return where a store URL points.

    Raises:
        ConfigError: its scheme or shape is none of those `Config.redis_url` names.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("redis", "rediss", "unix"):
        return Address("standalone", url)
    if scheme in ("cluster", "clusters"):
        return _of_cluster(scheme, rest)
    if scheme == "sentinel":
        return _of_sentinels(url, rest)
    raise ConfigError(f"redis_url must start with redis, rediss, unix, sentinel or cluster, got {scheme!r}")


def _of_cluster(scheme: str, rest: str) -> Address:
    url = ("rediss://" if scheme == "clusters" else "redis://") + rest
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("db", [parts.path.strip("/")])[0]
    if database not in ("", "0"):
        raise ConfigError(f"redis_url must name no database but 0, for a Cluster has no other, got {database!r}")
    return Address("cluster", url, [(parts.hostname or "localhost", parts.port or 6379)])


def _of_sentinels(url: str, rest: str) -> Address:
    hosts, _, path = rest.partition("/")
    service, _, query = path.partition("?")
    hosts = hosts.rpartition("@")[2]
    try:
        nodes = [
            (host or "127.0.0.1", int(port or 26379)) for host, _, port in (h.partition(":") for h in hosts.split(","))
        ]
        database = int(parse_qs(query).get("db", ["0"])[0])
    except ValueError:
        raise ConfigError(f"redis_url must be sentinel://host:port,host:port/service, got {url!r}") from None
    if not service:
        raise ConfigError(f"redis_url must name a service, sentinel://host:port/service, got {url!r}")
    return Address("sentinel", f"sentinel://{hosts.split(',')[0].split(':')[0]}", nodes, service, database)

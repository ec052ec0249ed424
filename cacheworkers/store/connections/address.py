"""StoreAddress: `Config.redis_url`, parsed strictly: what it says is used or refused, and no secret is shown.

    redis[s]://[user:password@]host[:port][/database]
    unix://[user:password@]/path
    cluster[s]://[user:password@]host[:port][,host[:port]...]
    sentinel[s]://[user:password@]host[:port][,host[:port]...]/service[/database]

A host is a name, an IPv4 address, or an IPv6 address in brackets.  The last letter of `rediss`, `clusters` and
`sentinels` asks for TLS.  `?option=value&...` follows; `OPTIONS` lists the options.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

from cacheworkers.errors import ConfigError

#: Host and port.
Node = tuple[str, int]
Kind = Literal["standalone", "sentinel", "cluster"]

#: Scheme -> what it names, and whether it asks for TLS.
SCHEMES: Mapping[str, tuple[Kind, bool]] = {
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "unix": ("standalone", False),
    "sentinel": ("sentinel", False),
    "sentinels": ("sentinel", True),
    "cluster": ("cluster", False),
    "clusters": ("cluster", True),
}
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9.])?")
_PERCENT = "write / ? # and % in a user or password as %2F %3F %23 and %25"


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a whole number")
    return int(text)


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _file(text: str) -> str:
    if not os.path.exists(text):
        raise ValueError("a path that exists")
    return text


def _one_of(*texts: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in texts:
            raise ValueError(f"one of {', '.join(texts)}")
        return text

    return parse


#: Option of a URL -> its parser.  Those that begin with `ssl_` need TLS, and those with `sentinel_` Sentinels.
OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "db": _number,
    "protocol": lambda text: int(_one_of("2", "3")(text)),
    "client_name": str,
    "sentinel_username": str,
    "sentinel_password": str,
    "ssl_ca_certs": _file,
    "ssl_ca_path": _file,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_password": str,
    "ssl_cert_reqs": _one_of("required", "optional", "none"),
    "ssl_check_hostname": _boolean,
    "ssl_server_hostname": str,
    "ssl_ciphers": str,
}


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where the store is, and how to connect to it.

    Attributes:
        kind: standalone, sentinel or cluster.
        shown: the URL without user, password and options; with a database other than 0.
        nodes: the server, the Sentinels, or seed nodes of the Cluster; empty for a Unix socket.
        path: of the Unix socket.
        service: the Sentinels' name for the master.
        username, password: of the servers; empty for none.
        sentinel_username, sentinel_password: of the Sentinels; None where the URL gives none.
        options: those for redis-py's connections, among them `ssl_...`.
    """

    kind: Kind
    shown: str
    nodes: tuple[Node, ...] = ()
    path: str = ""
    service: str = ""
    database: int = 0
    has_tls: bool = False
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def parse_url(url: str) -> StoreAddress:
    """Return where a store URL points.

    Raises:
        ConfigError: it breaks a rule, or says something that cannot be used; the message shows no secret.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        schemes = ", ".join(f"{each}://" for each in SCHEMES)
        raise ConfigError(f"redis_url must begin with one of {schemes}" + (_shown_scheme(scheme) if separator else ""))
    kind, has_tls = SCHEMES[scheme]
    rest, _, query = rest.partition("?")
    if "@" in query or "#" in rest or "#" in query:
        raise ConfigError(f"redis_url must have no fragment, and no bare ? or # before its host: {_PERCENT}")
    authority, slash, path = rest.partition("/")
    if "@" in path:
        raise ConfigError(f"redis_url must have no bare / before its host: {_PERCENT}")
    credentials, at, hosts = authority.rpartition("@")
    username, colon, password = credentials.partition(":")
    if at and not credentials:
        raise ConfigError("redis_url must have a user, a password or both before its @")
    options = _options(query, kind, has_tls)
    found = _Location(scheme, kind, hosts, path, slash)
    database = options.pop("db", None)
    if database is not None and found.database is not None and database != found.database:
        raise ConfigError(f"redis_url must name one database, got /{found.database} and ?db={database}")
    database = found.database if database is None else database
    if kind == "cluster" and database:
        raise ConfigError(f"redis_url must name no database but 0, since a Cluster has no other, got {database}")
    return StoreAddress(
        kind,
        found.shown + (f"{'?db=' if found.socket else '/'}{database}" if database else ""),
        found.nodes,
        found.socket,
        found.service,
        database or 0,
        has_tls,
        unquote(username),
        unquote(password) if colon else "",
        options.pop("sentinel_username", None),
        options.pop("sentinel_password", None),
        options,
    )


class _Location:
    """The part of a URL that is no secret: hosts, socket, service and database."""

    def __init__(self, scheme: str, kind: Kind, hosts: str, path: str, slash: str) -> None:
        self.nodes: tuple[Node, ...] = ()
        self.socket = self.service = ""
        self.database: int | None = None
        if scheme == "unix":
            if hosts or not path:
                raise ConfigError("redis_url must be unix:///path of the socket, or unix://user:password@/path")
            self.socket = "/" + unquote(path)
            self.shown = f"unix://{self.socket}"
            return
        default_port = 26379 if kind == "sentinel" else 6379
        self.nodes = tuple(_node(each, default_port) for each in hosts.split(","))
        if kind == "standalone" and len(self.nodes) > 1:
            raise ConfigError(
                f"redis_url must name one host after {scheme}://, got {len(self.nodes)}; several are the nodes of "
                "cluster://, or the Sentinels of sentinel://host,host/service"
            )
        self.shown = f"{scheme}://" + ",".join(map(_shown_node, self.nodes))
        if kind == "sentinel":
            service, _, path = path.partition("/")
            self.service = unquote(service)
            if not self.service:
                raise ConfigError(f"redis_url must name a service, sentinel://host:port/service, got {self.shown}")
            self.shown += f"/{self.service}"
        path = path.removesuffix("/")
        if path:
            if not path.isdecimal():
                raise ConfigError(
                    f"redis_url must have nothing but a database's number after {self.shown}/, got {path!r}"
                )
            self.database = int(path)


def _node(text: str, default_port: int) -> Node:
    """Return host and port; the message of an error shows neither, since a bare @ or / may have put a secret there."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            bracket = ""
        is_host = bool(bracket) and (not port or port.startswith(":"))
        port = port.removeprefix(":")
    else:
        host, colon, port = text.partition(":")
        is_host = bool(_HOST.fullmatch(host)) and (not colon or bool(port))
    if not is_host:
        raise ConfigError(
            "redis_url must have a name, an IPv4 address or an IPv6 address in brackets for each host, with or without "
            f":port; {_PERCENT}"
        )
    if not port:
        return host, default_port
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"redis_url must have ports from 1 to 65535; {_PERCENT}")
    return host, int(port)


def _options(query: str, kind: Kind, has_tls: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError("redis_url must have option=value&option=value after its ?") from None
    for name, text in pairs:
        if name not in OPTIONS:
            known = ", ".join(OPTIONS)
            raise ConfigError(f"redis_url has an option that is not one of {known}{_remedy(name)}")
        if name in found:
            raise ConfigError(f"redis_url must give {name} once")
        if name.startswith("ssl_") and not has_tls:
            raise ConfigError(f"redis_url must begin with rediss://, sentinels:// or clusters:// to use {name}")
        if name.startswith("sentinel_") and kind != "sentinel":
            raise ConfigError(f"redis_url must begin with sentinel:// or sentinels:// to use {name}")
        try:
            found[name] = OPTIONS[name](text)
        except ValueError as error:
            raise ConfigError(f"redis_url must have for {name} {error}") from None
    return found


def _remedy(name: str) -> str:
    """Return what to do instead of an option that other libraries know."""
    if name in ("ssl", "tls"):
        return "; for TLS begin with rediss://, sentinels:// or clusters://"
    if name in ("username", "password"):
        return "; write user:password@ before the host"
    if name in ("socket_timeout", "socket_connect_timeout", "timeout"):
        return "; set Config.store_timeout"
    return ""


def _shown_scheme(scheme: str) -> str:
    """Return the scheme for a message, unless it may hold something else."""
    return f", got {scheme}://" if re.fullmatch(r"[a-z][a-z+-]{0,20}", scheme) else ""


def _shown_node(node: Node) -> str:
    host, port = node
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

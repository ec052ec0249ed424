"""StoreAddress: what a store URL says is used or refused, and no error shows a secret."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cacheworkers import Cache, Config, ConfigError
from cacheworkers.store.connections.address import parse_url
from cacheworkers.store.connections.clients import Clients
from cacheworkers.store.connections.connection import unconnected

SECRET = "s3cret-s3cret"


@pytest.mark.parametrize(
    ("url", "expected"),
    {
        "redis://host": {"nodes": (("host", 6379),), "database": 0, "shown": "redis://host:6379"},
        "redis://host:7/3": {"nodes": (("host", 7),), "database": 3},
        "redis://host/3/": {"database": 3},
        "redis://host?db=4": {"database": 4},
        "redis://host/4?db=4": {"database": 4},
        "rediss://10.0.0.1:7": {"has_tls": True, "nodes": (("10.0.0.1", 7),)},
        "redis://[::1]:7/2": {"nodes": (("::1", 7),), "database": 2, "shown": "redis://[::1]:7/2"},
        "redis://[fe80::1]": {"nodes": (("fe80::1", 6379),)},
        f"redis://:{SECRET}@host": {"username": "", "password": SECRET},
        f"redis://shop:{SECRET}@host": {"username": "shop", "password": SECRET, "shown": "redis://host:6379"},
        "redis://shop@host": {"username": "shop", "password": ""},
        "redis://sh%40p:a%2Fb%3Ac%25@host": {"username": "sh@p", "password": "a/b:c%"},
        "redis://shop:a@b:c@host": {"password": "a@b:c"},
        "unix:///run/redis.sock?db=2": {
            "path": "/run/redis.sock",
            "nodes": (),
            "database": 2,
            "shown": "unix:///run/redis.sock?db=2",
        },
        f"unix://shop:{SECRET}@/run/redis.sock": {"path": "/run/redis.sock", "password": SECRET},
        "cluster://a:7000,b": {"kind": "cluster", "nodes": (("a", 7000), ("b", 6379))},
        "clusters://[::1]:7000,b:7001": {"has_tls": True, "nodes": (("::1", 7000), ("b", 7001))},
        "cluster://a/0": {"database": 0},
        "sentinel://a,b:7/shop": {"kind": "sentinel", "nodes": (("a", 26379), ("b", 7)), "service": "shop"},
        "sentinel://a/shop/5": {"service": "shop", "database": 5, "shown": "sentinel://a:26379/shop/5"},
        "sentinel://a/shop?db=5": {"service": "shop", "database": 5},
        f"sentinels://u:{SECRET}@a/shop": {"has_tls": True, "username": "u", "password": SECRET, "service": "shop"},
        f"sentinel://a/shop?sentinel_username=w&sentinel_password={SECRET}": {
            "sentinel_username": "w",
            "sentinel_password": SECRET,
        },
        "redis://host?protocol=2&client_name=web": {"options": {"protocol": 2, "client_name": "web"}},
        "rediss://host?ssl_cert_reqs=none&ssl_check_hostname=false": {
            "options": {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        },
    }.items(),
)
def test_every_part_of_a_url_is_kept(url: str, expected: dict[str, Any]) -> None:
    address = parse_url(url)

    assert {name: getattr(address, name) for name in expected} == expected
    assert SECRET not in repr(address)


@pytest.mark.parametrize(
    ("url", "rule"),
    {
        f"user:{SECRET}@host:6379/0": "URL",
        f"http://user:{SECRET}@host/0": "must begin with one of",
        f"user:{SECRET}://host/0": "must begin with one of",
        f"redis-sentinel://:{SECRET}@host/shop": "must begin with one of",
        f"redis://user:{SECRET}/x@host/0": "%2F",
        f"redis://user:{SECRET}?x@host/0": "%3F",
        f"redis://user:{SECRET}#x@host/0": "%23",
        f"redis://user:{SECRET}@host/0#x": "fragment",
        "redis://@host": "user, a password or both",
        f"redis://:{SECRET}@": "for each host",
        f"redis://:{SECRET}@ho st": "for each host",
        f"redis://:{SECRET}@host:": "for each host",
        f"redis://:{SECRET}@::1:6379": "for each host",
        f"redis://:{SECRET}@[::g]:6379": "for each host",
        f"redis://:{SECRET}@[::1]6379": "for each host",
        f"redis://:{SECRET}@host:x": "ports from 1 to 65535",
        f"redis://:{SECRET}@host:0": "ports from 1 to 65535",
        f"redis://:{SECRET}@host:65536": "ports from 1 to 65535",
        f"redis://:{SECRET}@a,b/0": "one host",
        f"redis://:{SECRET}@host/zero": "number",
        f"redis://:{SECRET}@host/-1": "number",
        f"redis://:{SECRET}@host/1/2": "number",
        f"redis://:{SECRET}@host/1?db=2": "one database",
        f"redis://:{SECRET}@host?db=x": "db a whole number",
        f"redis://:{SECRET}@host?db=1&db=1": "once",
        f"redis://:{SECRET}@host?x": "option=value",
        f"redis://host?password={SECRET}": "before the host",
        f"redis://:{SECRET}@host?socket_timeout=3": "store_timeout",
        f"redis://:{SECRET}@host?ssl=true": "rediss",
        f"redis://:{SECRET}@host?ssl_ca_certs=/etc": "rediss",
        f"rediss://:{SECRET}@host?ssl_ca_certs=/nowhere/ca.pem": "ssl_ca_certs a path that exists",
        f"rediss://:{SECRET}@host?ssl_cert_reqs=perhaps": "ssl_cert_reqs one of",
        f"redis://host?sentinel_password={SECRET}": "sentinel://",
        f"unix://:{SECRET}@": "path of the socket",
        f"unix://:{SECRET}@host/run/redis.sock": "path of the socket",
        f"cluster://:{SECRET}@a,b/3": "no database but 0",
        f"cluster://:{SECRET}@a,,b": "for each host",
        f"sentinel://:{SECRET}@host:26379": "service",
        f"sentinel://:{SECRET}@host/": "service",
        f"sentinel://:{SECRET}@a:x,b/shop": "ports",
    }.items(),
)
def test_what_cannot_be_used_is_refused_and_no_secret_is_shown(url: str, rule: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Cache(Config(redis_url=url))

    assert rule in str(raised.value)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None and (raised.value.__context__ is None or raised.value.__suppress_context__)


def test_a_configuration_shows_no_secret() -> None:
    class Provider:
        def get_credentials(self) -> tuple[str]:
            return (SECRET,)

        def __repr__(self) -> str:
            return SECRET

    for config in (Config(redis_url=f"redis://:{SECRET}@host"), Config(credential_provider=Provider())):
        assert SECRET not in f"{config!r} {config}"


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"redis_url": f"redis://:{SECRET}@host", "secret_file": "/run/secret"}, "one place"),
        ({"credential_provider": "secret"}, "get_credentials"),
        ({"secret_file": 3}, "path"),
    ],
)
def test_a_password_has_one_source(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as raised:
        Cache(Config(**settings))

    assert SECRET not in str(raised.value)


def test_a_provider_cannot_come_from_the_environment() -> None:
    with pytest.raises(ConfigError, match="SECRET_FILE"):
        Config.from_env({"CACHEWORKERS_CREDENTIAL_PROVIDER": "x"})

    assert Config.from_env({"CACHEWORKERS_SECRET_FILE": "/run/secret"}).secret_file == "/run/secret"


@pytest.mark.parametrize("scheme", ["rediss://host:7", "clusters://host:7", "sentinels://host:7/shop"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_tls_options_reach_every_connection(tmp_path: Path, scheme: str, is_async: bool) -> None:
    """To servers and to Sentinels, with the name that certificates must be for."""
    authority = tmp_path / "ca.pem"
    authority.touch()
    address = parse_url(f"{scheme}?ssl_ca_certs={authority}&ssl_check_hostname=false&ssl_server_hostname=shop.example")
    clients = Clients(address, 1.0)
    if address.kind == "cluster":
        pools = [clients.async_pool_at("b", 8) if is_async else clients.pool_at("b", 8)]
    else:
        client = clients._client(is_async=is_async)
        sentinel = getattr(client.connection_pool, "sentinel_manager", None)
        sentinels = [] if sentinel is None else sentinel.sentinels
        pools = [client.connection_pool, *(each.connection_pool for each in sentinels)]

    for pool in pools:
        connection = unconnected(pool)
        assert type(connection).__name__.endswith("SSLConnection")
        assert (connection.ca_certs, connection.check_hostname) == (str(authority), False)
        assert type(connection).server_name == "shop.example"


def test_an_address_is_a_value() -> None:
    address = parse_url("redis://host")

    assert address == dataclasses.replace(address)


def test_what_is_no_number_of_a_database_is_quoted() -> None:
    """It stands behind the host, where no secret is."""
    with pytest.raises(ConfigError, match=r"after redis://127\.0\.0\.1:6379/, got 'shop'"):
        parse_url("redis://127.0.0.1:6379/shop")

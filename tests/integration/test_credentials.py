"""Users, passwords and certificates of the store: used at every connection, and changed without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cacheworkers import Cache, Config, Load
from cacheworkers.store.connections.address import parse_url
from cacheworkers.store.connections.credentials import Provider as CheckedProvider
from cacheworkers.store.connections.credentials import provider_of
from cacheworkers.store.diagnostics.server_facts import StoreDiagnostics
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

CERTIFICATES = Path(__file__).parent / "certificates"


def declared(cache: Cache) -> Any:
    @cache.loader(fresh_for=300, l1_for=0.0)
    def number(load: Load, n: int) -> int:
        return n * 10

    return number


def is_cached(number: Any, n: int) -> bool:
    """Whether a read leaves an entry in the store, on a thread and on a loop."""
    number.get(n)
    return bool(number.read(n).tier == "store" and asyncio.run(number.aread(n)).tier == "store")


# -- Sentinels


class Sentinel(Valkey):
    """A Sentinel of one master, which it calls `shop`."""

    def __init__(self, master: Valkey, of_servers: str, password: str) -> None:
        super().__init__()
        self._password = password
        self._lines = [f"sentinel monitor shop 127.0.0.1 {master.port} 1"]
        self._lines += [f"sentinel auth-pass shop {of_servers}"] * bool(of_servers)
        self._lines += [f"requirepass {password}"] * bool(password)

    def command(self) -> Any:
        words, options = super().command()
        file = self.dir / "sentinel.conf"
        file.write_text("\n".join([f"port {self.port}", "bind 127.0.0.1", *self._lines]) + "\n")
        return [words[0], str(file), "--sentinel"], options

    def is_ready(self) -> bool:
        with redis.Redis(port=self.port, password=self._password or None, socket_timeout=1.0) as client:
            try:
                return bool(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "shop"))
            except redis.RedisError:
                return False


@pytest.mark.parametrize(
    ("of_servers", "of_sentinels", "credentials", "options"),
    [
        ("", "", "", ""),
        ("secret", "", ":secret@", ""),
        ("secret", "secret", ":secret@", ""),
        ("secret", "other", ":secret@", "?sentinel_password=other"),
        ("", "other", "", "?sentinel_password=other"),
    ],
)
def test_servers_and_sentinels_have_passwords_of_their_own(
    of_servers: str, of_sentinels: str, credentials: str, options: str
) -> None:
    """One of the Sentinels that the URL names is down."""
    with Valkey() as master:
        with redis.Redis(port=master.port) as client:
            client.config_set("requirepass", of_servers)
        with Sentinel(master, of_servers, of_sentinels) as sentinel:
            url = f"sentinel://{credentials}127.0.0.1:1,127.0.0.1:{sentinel.port}/shop{options}"
            cache = Cache(Config(redis_url=url, store_timeout=5.0))

            number = declared(cache)
            wait_until(lambda: is_cached(number, 1))

            assert cache.invalidate("nothing")
            cache.close()


# -- rotation


class Provider:
    """Gives the current password, and counts how often it was asked."""

    def __init__(self, current: list[str]) -> None:
        self.current = current
        self.asked = 0

    def get_credentials(self) -> tuple[str, str]:
        self.asked += 1
        return "app", self.current[0]


class AsyncProvider(redis.CredentialProvider):
    """The same, as redis-py has it."""

    def __init__(self, current: list[str]) -> None:
        self.current = current

    def get_credentials(self) -> tuple[str, str]:
        return "app", self.current[0]

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


@pytest.mark.parametrize("how", ["provider", "async provider", "file"])
def test_a_password_that_changes_needs_no_restart(how: str, tmp_path: Path) -> None:
    with Valkey() as server, redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">old", "~*", "&*", "+@all")
        current, file, user = ["old"], tmp_path / "password", ""
        file.write_text("old\n")
        settings: dict[str, Any] = {"credential_provider": Provider(current)}
        if how == "async provider":
            settings = {"credential_provider": AsyncProvider(current)}
        elif how == "file":
            settings, user = {"secret_file": str(file)}, "app@"
        cache = Cache(Config(redis_url=f"redis://{user}127.0.0.1:{server.port}/0", store_timeout=5.0, **settings))
        number = declared(cache)
        wait_until(lambda: is_cached(number, 1))

        current[0] = "new"
        file.write_text("new\n")
        admin.execute_command("ACL", "SETUSER", "app", "resetpass", ">new")
        for each in admin.client_list():
            if each["user"] == "app":
                admin.client_kill_filter(_id=each["id"])

        wait_until(lambda: is_cached(number, 2))
        wait_until(lambda: cache._ports.listener.is_up)
        cache.close()


def test_a_password_comes_from_its_file_each_time(tmp_path: Path) -> None:
    file = tmp_path / "password"
    for user, expected in (("app@", ("app", "old")), ("", ("new",))):
        file.write_text(f"{expected[-1]}\n")
        url = f"redis://{user}127.0.0.1/0"
        provider = provider_of(Config(redis_url=url, secret_file=str(file)), parse_url(url))
        assert provider is not None
        assert provider.get_credentials() == expected
    assert provider_of(Config(), parse_url("redis://127.0.0.1/0")) is None


class AskedProvider(redis.CredentialProvider):
    """One of redis-py's kind that leaves the asynchronous method as it is: that one would block the loop."""

    asked_by = ""

    def get_credentials(self) -> tuple[str, str]:
        self.asked_by = threading.current_thread().name
        return "app", "secret"


class AskedAsyncProvider(AskedProvider):
    """One with an asynchronous method of its own."""

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


def test_on_a_loop_a_provider_is_asked_by_its_own_asynchronous_method_or_on_a_thread() -> None:
    own, inherited = AskedAsyncProvider(), AskedProvider()

    for provider in (own, inherited):
        assert asyncio.run(CheckedProvider(provider).get_credentials_async()) == ("app", "secret")

    here = threading.current_thread().name
    assert own.asked_by == here and inherited.asked_by not in ("", here)


def test_credentials_that_cannot_be_had_are_a_store_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """Reads load for themselves; what the provider raised may hold a token, and is not shown."""

    class Broken:
        def get_credentials(self) -> tuple[str]:
            raise RuntimeError("token-of-somebody")

    with Valkey() as server:
        cache = Cache(Config(redis_url=server.url, credential_provider=Broken(), store_timeout=5.0))

        assert declared(cache).get(1) == 10

        cache.close()
    assert "RuntimeError" in caplog.text
    assert "token-of-somebody" not in caplog.text


@pytest.mark.parametrize("given", ["secret", ("app", "secret", "more"), ("app", b"secret"), None], ids=str)
def test_credentials_of_another_shape_are_an_error_that_says_so(given: Any) -> None:
    """A mistake in the user's own code, whose text is ours to show: the log would name a TypeError alone."""

    class Mistaken:
        def get_credentials(self) -> Any:
            return given

    provider = CheckedProvider(Mistaken())

    for ask in (provider.get_credentials, lambda: asyncio.run(provider.get_credentials_async())):
        with pytest.raises(redis.ConnectionError, match=r"must return \(password,\) or \(user, password\)") as raised:
            ask()
        assert "secret" not in str(raised.value)


# -- TLS


class TlsProxy:
    """Passes TLS connections on to a server without TLS; whoever connects must show a certificate."""

    def __init__(self, server: Valkey) -> None:
        self._server = server
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
        self._context.load_verify_locations(CERTIFICATES / "ca.pem")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError, RuntimeError):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    target.write(data)
                    await target.drain()
            target.close()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, to_there = await asyncio.open_connection("127.0.0.1", self._server.port)
            await asyncio.gather(copy(reader, to_there), copy(there, writer))

        self._ended = asyncio.Event()
        await asyncio.start_server(connected, sock=self._listening, ssl=self._context)
        await self._ended.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._listening.close()


@pytest.fixture
def tls() -> Iterator[TlsProxy]:
    with Valkey() as server:
        proxy = TlsProxy(server)
        yield proxy
        proxy.close()


OWN = f"ssl_certfile={CERTIFICATES}/client.pem&ssl_keyfile={CERTIFICATES}/client.key"
AUTHORITY = f"ssl_ca_certs={CERTIFICATES}/ca.pem"


def test_tls_with_certificates_of_both_sides_and_another_server_name(tls: TlsProxy) -> None:
    url = f"rediss://127.0.0.1:{tls.port}/0?{AUTHORITY}&{OWN}&ssl_server_hostname=shop.example"
    cache = Cache(Config(redis_url=url, store_timeout=5.0))
    number = declared(cache)

    wait_until(lambda: is_cached(number, 1))

    wait_until(lambda: cache._ports.listener.is_up)
    [connection] = cache._ports.listener.connections
    assert not connection._takes_writes, "OpenSSL takes no write by one thread while another reads"
    cache.close()


@pytest.mark.parametrize(
    "options",
    [f"{AUTHORITY}&{OWN}", f"{OWN}&ssl_server_hostname=shop.example", f"{AUTHORITY}&ssl_server_hostname=shop.example"],
    ids=["another name", "unknown authority", "no certificate of one's own"],
)
def test_what_cannot_be_verified_is_not_used(tls: TlsProxy, options: str) -> None:
    cache = Cache(Config(redis_url=f"rediss://127.0.0.1:{tls.port}/0?{options}", store_timeout=5.0))
    number = declared(cache)

    assert number.get(1) == 10
    assert number.read(1).tier == "load"
    cache.close()


# -- rights

#: As docs/how-to/connect.md gives them.
_READS_AND_WRITES = "~shop:* +@read +@write +@scripting +@connection -@dangerous +info +time"
USERS = {"web": _READS_AND_WRITES, "worker": _READS_AND_WRITES, "ops": f"{_READS_AND_WRITES} +config|get"}


@pytest.mark.parametrize("user", USERS)
def test_each_user_may_do_what_its_processes_do(user: str) -> None:
    with Valkey() as server, redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", user, "on", ">secret", "&*", *USERS[user].split())
        config = Config(
            redis_url=f"redis://{user}:secret@127.0.0.1:{server.port}/0", namespace="shop", store_timeout=5.0
        )
        with StoreDiagnostics(config) as diagnostics:
            assert diagnostics.denied() == []
            assert diagnostics.unreceived_pushes() == ""
        cache = Cache(config)
        number = declared(cache)
        wait_until(lambda: is_cached(number, 1))
        wait_until(lambda: cache._ports.listener.is_up)
        cache.invalidate("anything")
        cache.collect_garbage()
        cache.close()

        with redis.Redis(port=server.port, username=user, password="secret") as client:
            for words in (("SET", "other", "1"), ("FLUSHALL",), ("CONFIG", "SET", "maxmemory", "1"), ("KEYS", "*")):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*words)

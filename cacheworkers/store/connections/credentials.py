"""Credentials that may change while a process runs: new connections ask for them each time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from redis.credentials import CredentialProvider as RedisCredentialProvider
from redis.exceptions import ConnectionError

from cacheworkers.config import Config
from cacheworkers.errors import ConfigError
from cacheworkers.store.connections.address import StoreAddress

Credentials = tuple[str] | tuple[str, str]


class Provider(RedisCredentialProvider):
    """Asks the configured provider, on a thread for event loops; what it raises is a failure to connect."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        own = getattr(type(provider), "get_credentials_async", None)
        self._is_async = own is not None and own is not RedisCredentialProvider.get_credentials_async

    def __repr__(self) -> str:
        return f"<credentials of {type(self._provider).__name__}>"

    def get_credentials(self) -> Credentials:
        """Return `(password,)` or `(user, password)`."""
        try:
            found = self._provider.get_credentials()
        except Exception as error:
            raise _failed(error) from None
        return _checked(found)

    async def get_credentials_async(self) -> Credentials:
        """Return the same."""
        try:
            if self._is_async:
                found = await self._provider.get_credentials_async()
            else:
                found = await asyncio.to_thread(self._provider.get_credentials)
        except Exception as error:
            raise _failed(error) from None
        return _checked(found)


class PasswordFile:
    """Reads the password from a file, whose last line end is no part of it."""

    def __init__(self, path: str, username: str) -> None:
        self._path = Path(path)
        self._username = username

    def get_credentials(self) -> Credentials:
        """Return what the file holds now."""
        password = self._path.read_text().rstrip("\r\n")
        return (self._username, password) if self._username else (password,)


def provider_of(config: Config, address: StoreAddress) -> Provider | None:
    """Return the provider of a configuration; None where the URL's user and password are all there is.

    Raises:
        ConfigError: there are several sources of one password.
    """
    sources = {
        "a password in redis_url": bool(address.password),
        "secret_file": bool(config.secret_file),
        "credential_provider": config.credential_provider is not None,
    }
    given = [name for name, is_given in sources.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"the store's password must come from one place, got {' and '.join(given)}")
    if config.credential_provider is not None:
        if address.username:
            raise ConfigError("redis_url must name no user beside credential_provider, which gives user and password")
        return Provider(config.credential_provider)
    return Provider(PasswordFile(config.secret_file, address.username)) if config.secret_file else None


def _checked(credentials: Any) -> Credentials:
    is_pair = isinstance(credentials, tuple | list) and len(credentials) in (1, 2)
    if not is_pair or not all(isinstance(each, str) for each in credentials):
        raise ConnectionError("the credential provider for the store must return (password,) or (user, password)")
    return tuple(credentials)


def _failed(error: Exception) -> ConnectionError:
    # Not its text, which may hold a token.
    return ConnectionError(f"the credential provider for the store failed: {type(error).__name__}")

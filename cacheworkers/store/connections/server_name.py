"""TLS connections of redis-py that verify another name than the host they connect to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_server_name(connection_class: Any, name: str, *, is_async: bool) -> Any:
    """Return a class of TLS connections whose certificates must be for `name`, which is also sent as SNI."""
    mixin = _AsyncServerName if is_async else _ServerName
    return type(f"Named{connection_class.__name__}", (mixin, connection_class), {"server_name": name})


class _ServerName:
    server_name: str
    host: str

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        host, self.host = self.host, self.server_name
        try:
            return super()._wrap_socket_with_ssl(sock)  # type: ignore[misc]  # redis-py's, which takes the host
        finally:
            self.host = host


class _AsyncServerName:
    server_name: str

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self.server_name}  # type: ignore[misc]  # redis-py's

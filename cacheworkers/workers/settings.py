"""Celery settings by role: publishers fail in milliseconds, workers are patient.

The numbers are measured: a publisher without socket timeouts hangs for ever on a frozen broker, and kombu's default
redelivery after a killed worker takes 100 s.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from cacheworkers.config import Config

#: Both roles, on Redis brokers.
COMMON = {
    "visibility_timeout": 120,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 10,
    "queue_order_strategy": "priority",
}
PUBLISHER = {
    "max_retries": 0,
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
    "socket_timeout": 0.1,
    "socket_connect_timeout": 0.1,
}
WORKER = {"socket_timeout": 5, "socket_connect_timeout": 2, "socket_keepalive": True}


def defaults(config: Config) -> dict[str, Any]:
    """Return what `bind` sets where the user has set nothing."""
    return {
        "worker_prefetch_multiplier": 1,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {**WORKER, **COMMON, "global_keyprefix": f"{config.namespace}:broker:"},
    }


def apply(app: Celery, config: Config) -> None:
    """Set the defaults that the user's app has not set itself."""
    chosen = app.conf.changes if hasattr(app.conf, "changes") else {}
    for name, value in defaults(config).items():
        if name == "broker_transport_options":
            mine = dict(app.conf.broker_transport_options or {})
            app.conf.broker_transport_options = {**value, **mine}
        elif name not in chosen:
            setattr(app.conf, name, value)


def publisher_options(app: Celery) -> dict[str, Any]:
    """Return the transport options of a connection that only publishes."""
    return {**dict(app.conf.broker_transport_options or {}), **PUBLISHER}

"""A RabbitMQ of the machine's own package, on a free port, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import kombu

from cacheworkers.testing.servers import Server, free_port
from cacheworkers.workers.broker_queues import declared_length

#: Those of a cache with default settings.
QUEUES = ("cw.miss", "cw.revalidate", "cw.warm", "cw.upkeep")

#: Where packages put the programs themselves: those on the path change to another user first.
_PACKAGED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def rabbitmq_program() -> str | None:
    """Return the path of the server's program; None where there is no RabbitMQ."""
    given = os.environ.get("RABBITMQ_SERVER")
    if given:
        return given
    return str(_PACKAGED) if _PACKAGED.exists() else shutil.which("rabbitmq-server")


class RabbitMQ(Server):
    """One node, with an epmd of its own."""

    def __init__(self) -> None:
        super().__init__(None)
        self.port, self._distribution, self._epmd = free_port(), free_port(), free_port()
        self._env = {
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin",
            "HOME": str(self.dir),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_MNESIA_BASE": str(self.dir / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.dir / "log"),
            "RABBITMQ_PID_FILE": str(self.dir / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.dir / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.dir / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # One scheduler, and no busy waiting: the tests beside it need the processor.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        }

    @property
    def url(self) -> str:
        """Its URL."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def command(self) -> Any:
        """Return the command line, after writing its files."""
        program = rabbitmq_program()
        assert program is not None, "tests that need RabbitMQ carry the marker `rabbitmq`"
        (self.dir / "plugins").write_text("[].\n")
        (self.dir / "rabbitmq.conf").write_text("loopback_users = none\nvm_memory_high_watermark.absolute = 2GB\n")
        return [program], {"env": self._env, "cwd": str(self.dir)}

    def is_ready(self) -> bool:
        """Return whether it begins a connection as AMQP does."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
            connection.settimeout(5.0)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"  # a method frame: Connection.Start
        return False

    def clear(self) -> None:
        """Delete the queues and exchanges that tests make; a queue that is not there is no error."""
        with kombu.Connection(self.url) as connection:
            for queue in (*QUEUES, "celery"):
                with connection.channel() as channel:
                    channel.queue_delete(queue)
            for exchange in (*QUEUES, "celery"):
                with connection.channel() as channel:
                    channel.exchange_delete(exchange)

    def length(self, queue: str) -> int:
        """Return how many messages no worker has taken; 0 where there is no such queue."""
        with kombu.Connection(self.url) as connection:
            return declared_length(connection, queue)

    def _end(self, how: signal.Signals) -> None:
        """End all of its processes: the first one is a script, which the node would outlive."""
        group = None if self.process is None else self.process.pid
        super()._end(how)
        if group is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def close(self) -> None:
        """Stop it and its epmd, and remove its directory."""
        was_running = self.process is not None
        super().close()
        if was_running:
            subprocess.run(["epmd", "-kill"], env=self._env, capture_output=True, check=False)

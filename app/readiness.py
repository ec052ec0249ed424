"""When a process of the Procfile is ready: its path answers, or its log has the words."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

from app.supervisor import Answers, Child

#: How long a process may take until it says that it is ready, seconds.
READY_WITHIN = 60.0
#: By what a process says that it is ready: the path it answers, or words in its log.
READY_PATHS = {"web": "/health", "page": "/health", "exporter": "/metrics", "flower": "/healthcheck"}
READY_WORDS = {"miss": " ready.", "rest": " ready.", "beat": "beat: Starting", "drain": "draining"}


async def until_ready(child: Child) -> None:
    """Return once a process is ready.

    Raises:
        TimeoutError: it is not after `READY_WITHIN` seconds; with its last log lines.
    """
    try:
        async with asyncio.timeout(READY_WITHIN):
            if child.name in READY_PATHS or child.name in READY_WORDS:
                await child.was_ready.wait()
    except TimeoutError:
        last = "\n".join(f"    {line}" for line in child.tail)
        raise TimeoutError(f"{child.name} is not ready after {READY_WITHIN:g} s; its last lines:\n{last}") from None


def asked(url: str) -> Answers:
    """Return what asks whether a GET of that URL is answered."""

    async def answers() -> bool:
        return await status_of(url) == 200

    return answers


async def status_of(url: str) -> int:
    """Return the HTTP status of a GET; 0 if nobody answers."""

    def get() -> int:
        try:
            with urllib.request.urlopen(url, timeout=5.0) as answer:
                answer.read()
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    return await asyncio.to_thread(get)

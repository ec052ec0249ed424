"""Is this container's process alive?  `python -m app.probe` exits with 0 if it is; it takes milliseconds.

Servers are asked over HTTP.  Workers and beat touch a file while they work (`app.worker`): its age says more than a
process that merely exists, and nothing has to be imported or connected to find out.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from pathlib import Path

#: Process of the Procfile -> what it answers while it is alive.
PATHS = {
    "web": ("PORT", "/health"),
    "page": ("PAGE_PORT", "/health"),
    "exporter": ("METRICS_PORT", "/metrics"),
    "flower": ("FLOWER_PORT", "/healthcheck"),
    "drain": ("OWN_METRICS_PORT", "/metrics"),
}
#: Process -> seconds after which a heartbeat is missed: workers send one every two, beat with every task that is due.
SILENT_FOR = {"miss": 20.0, "rest": 20.0, "beat": 60.0}


def heartbeat_file(process: str) -> Path:
    """Return the file that a process of this container touches."""
    return Path(os.environ.get("HEARTBEAT_DIR", "/run/beat")) / process


def why_not(process: str, now: float) -> str | None:
    """Return why a process of the Procfile does not count as alive; None if it does."""
    if process in PATHS:
        port, path = PATHS[process]
        url = f"http://127.0.0.1:{os.environ[port]}{path}"
        try:
            urllib.request.urlopen(url, timeout=2.5).read()
        except OSError as error:
            return f"{url} does not answer: {error}"
        return None
    file, most = heartbeat_file(process), SILENT_FOR[process]
    try:
        age = now - file.stat().st_mtime
    except OSError as error:
        return f"no heartbeat: {error}"
    return None if age < most else f"the last heartbeat is {age:.0f} s old, at most {most:g} s are allowed"


def main() -> None:
    """Exit with 1 and say why, if the process that PROCESS names is not alive."""
    process = os.environ.get("PROCESS", "web")
    if process not in PATHS and process not in SILENT_FOR:
        sys.exit(f"PROCESS must be one of {', '.join([*PATHS, *SILENT_FOR])}, got {process!r}")
    if reason := why_not(process, time.time()):
        sys.exit(f"{process}: {reason}")


if __name__ == "__main__":
    main()

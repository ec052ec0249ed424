"""Which topologies there are, and the table of docs/reference/topologies.md: `python tests/topologies/matrix.py`."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "topologies.md"
SHAPES = {
    "standalone": "one server",
    "sentinel": "Sentinel: a master, 2 replicas, 3 Sentinels",
    "cluster": "Cluster: 3 masters, 3 replicas",
}
#: Product and security.  The embedded Valkey is built without TLS.
SERVERS = (("valkey", "password"), ("redis", "password"), ("redis", "tls"))
BROKERS = ("threads", "redis", "rabbitmq")
COLUMNS = ("reads", "misses", "revalidation", "warm", "invalidate", "failover", "doctor", "metrics")
#: What a cell says besides that it works.
CAVEATS = {
    ("standalone", "failover"): "back empty",
    ("sentinel", "failover"): "with `replicas=1`",
    ("cluster", "failover"): "with `replicas=1`",
}


def ids() -> list[str]:
    """Return the name of each stage, as the tests' parameters have it."""
    return [f"{shape}-{'-'.join(server)}-{broker}" for shape in SHAPES for server in SERVERS for broker in BROKERS]


def tests() -> list[str]:
    """Return the names of the tests of a stage."""
    tree = ast.parse((HERE / "test_every_topology.py").read_text())
    return [each.name for each in tree.body if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")]


def table() -> str:
    """Return the table: a line for each store, a cell for each test."""
    lines = ["| store | brokers | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for shape, says in SHAPES.items():
        for product, security in SERVERS:
            names = {"valkey": "embedded Valkey", "redis": "redis-server"}
            store = f"{says}; {names[product]}, {'password and TLS' if security == 'tls' else 'password'}"
            cells = [f"`test_{column}[{shape}-{product}-{security}-*]`" for column in COLUMNS]
            notes = [CAVEATS.get((shape, column), "") for column in COLUMNS]
            shown = [cell + (f" {note}" if note else "") for cell, note in zip(cells, notes, strict=True)]
            lines.append(f"| {store} | none, Redis, RabbitMQ | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def page() -> str:
    """Return the page as it should be."""
    text = PAGE.read_text()
    return re.sub(
        r"(<!-- table -->\n).*?(\n<!-- end -->)", lambda m: m[1] + table() + m[2], text, count=1, flags=re.DOTALL
    )


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)

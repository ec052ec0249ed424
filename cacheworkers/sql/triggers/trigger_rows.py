"""Trigger rows: what triggers have written to the outbox in a transaction that is about to be committed.

Its own process invalidates that right after the commit, as it does what sessions wrote, and so reads its own writes.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from cacheworkers.sql.outbox.outbox import SOFT_TRIGGER, TRIGGER, Outbox
from cacheworkers.sql.outbox.relay import legal_tags
from cacheworkers.sql.tag_options import Mode

#: Most tags that are read before a commit; a bulk statement may have touched millions, and the relay delivers the rest.
MAX_TAGS = 20_000
#: How far back rows are searched, by number: where no relay runs, there may be millions.
_LATEST = 10_000


def written_by_triggers(
    connection: Connection, outbox: Outbox, max_tag_bytes: int
) -> list[tuple[int, tuple[str, ...], Mode]]:
    """Return number, tags and mode of the rows that triggers wrote in the connection's transaction, in their order.

    Tags that no entry can have are left out: a trigger makes them of any text in a column.
    """
    if connection.dialect.name != "postgresql":
        return []
    table = outbox.table
    statement = (
        select(table.c.id, table.c.tags, table.c.source)
        .where(table.c.namespace == outbox.namespace, table.c.delivered_at.is_(None))
        .where(table.c.source.in_((TRIGGER, SOFT_TRIGGER)))
        # The default of that column is when its transaction began, to the microsecond.
        .where(table.c.written_at == func.transaction_timestamp())
        .where(table.c.id > select(func.max(table.c.id) - _LATEST).scalar_subquery())
        .order_by(table.c.id)
    )
    found: list[tuple[int, tuple[str, ...], Mode]] = []
    left = MAX_TAGS
    # The outbox is in one schema, wherever a tenant's tables are.
    for number, text, source in connection.execute(statement, execution_options={"schema_translate_map": None}):
        tags = tuple(text.split("\n"))
        left -= len(tags)
        if left < 0:
            break
        found.append((number, tuple(legal_tags(tags, max_tag_bytes)), "soft" if source == SOFT_TRIGGER else "hard"))
    return found

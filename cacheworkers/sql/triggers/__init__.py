"""Postgres triggers that write the outbox for changes made outside the ORM."""

"""SQLAlchemy: loaders' sessions, watched sessions, the outbox and its relay, Postgres triggers."""

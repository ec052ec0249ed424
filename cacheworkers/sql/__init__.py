"""SQLAlchemy: the sessions that loaders get."""

"""RESP3 client tracking: the connections that receive invalidation messages, and what they do."""

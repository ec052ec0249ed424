"""The transactional outbox: tags written with the change, and relayed to the store."""

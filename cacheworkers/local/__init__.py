"""State and concurrency of one process: L1, waiters, single flight, breaker, bulkhead, clock."""

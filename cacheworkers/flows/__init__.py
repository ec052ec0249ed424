"""Each algorithm once: a generator that yields I/O steps, for the drivers to perform in threads, tasks or tests."""

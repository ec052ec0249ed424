"""What the servers of the store report about themselves, for doctor."""

"""The flash-sale page: a crowd, a database that does not notice, and buttons that break things for real."""

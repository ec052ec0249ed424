"""Formats and decisions without I/O, where `now` is an argument; and the driver that performs the steps of flows."""

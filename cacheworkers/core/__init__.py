"""Pure decisions and formats: no I/O, and `now` is an argument."""

"""For those who operate it: the command line."""

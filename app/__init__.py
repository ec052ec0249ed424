"""The product API: an example of use, on the public API only."""

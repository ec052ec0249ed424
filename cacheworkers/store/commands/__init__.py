"""The commands and scripts that the library sends to the store, each a typed method with its reply."""

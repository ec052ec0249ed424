"""The table a buyer wants: one product API on FastAPI, cached by this library, by its peers, by hand and not at all."""

#: How long each peer keeps a product, seconds.
FRESH_FOR = 300

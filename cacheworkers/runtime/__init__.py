"""How one process is wired: its parts, its declared loaders, and what runs them."""

"""Redis or Valkey: the only folder that imports redis, and that knows milliseconds and the topology."""

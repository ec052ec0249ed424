"""Connections to Redis or Valkey: addresses, pools, topologies and health."""

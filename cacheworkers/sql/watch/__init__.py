"""Watching sessions: what a unit of work changes becomes tags."""

"""Celery: publishes load requests to workers, and runs them there."""

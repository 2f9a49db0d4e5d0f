"""Alembic revisions over a fleet of schemas: compiled once, applied to many."""

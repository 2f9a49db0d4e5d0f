"""Queries over tenant and shared tables, and over all tenants."""

"""Connections: drivers that run nothing outside a scoped transaction, and pools of them."""

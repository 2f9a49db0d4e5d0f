"""How a transaction is bound to one tenant, and what a tenant is made of."""

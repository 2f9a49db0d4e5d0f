"""Creating and dropping tenants."""

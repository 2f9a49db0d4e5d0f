"""Who the tenants are: a table in the shared schema, or the application's own discovery."""

"""The tenants, and which of them is at work; one of each in a process."""

from models import User
from tenant_config import config

from sqlalchemy_multitenant import AsyncTenantDb, AsyncTenantManager, TenantContext

tenants = AsyncTenantManager(config)
context = TenantContext[User, AsyncTenantDb](tenants)

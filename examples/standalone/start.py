"""Prepares the database and shows what the shop does: `python start.py`."""

from shop import add_plan, add_user, context, count_users, tenants, users
from tenant_config import config

from sqlalchemy_multitenant import Migrator, NoTenantError


def prepare() -> None:
    """What a deployment does before the new version starts."""
    with Migrator(config) as migrator:
        migrator.migrate_shared()
        migrator.migrate_all()
    tenants.create_tenants(["acme", "globex"])  # those that exist stay as they are


def main() -> None:
    add_plan("team")
    with context.use_tenant("acme"):
        add_user("Ada", plan="team")
        add_user("Grace")
        print("acme:  ", users())
    with context.use_tenant("globex"):
        add_user("Guido")
        print("globex:", users())
    print("counts:", count_users())
    try:
        users()
    except NoTenantError as error:
        print("refused:", error)


if __name__ == "__main__":
    with tenants:
        prepare()
        main()

"""What the application stores."""

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class SharedBase(DeclarativeBase):
    """Tables that exist once, in the shared schema."""


class TenantBase(DeclarativeBase):
    """Tables that each tenant has, in a schema of its own."""


class Plan(SharedBase):
    __tablename__ = "plans"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    max_projects: Mapped[int]


class Account(SharedBase):
    """Who may log in, and to which tenant. The rest about a person is in the tenant's `users`."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    tenant: Mapped[str]


class Subscription(TenantBase):
    """The tenant's plan: one row."""

    __tablename__ = "subscription"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, default=1)
    plan_id: Mapped[int] = mapped_column(ForeignKey(Plan.id))


class User(TenantBase):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


class Project(TenantBase):
    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(unique=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey(User.id))


class Event(TenantBase):
    """What has happened; written by a background job."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[str]

"""Who somebody is: signing up, logging in, and the tokens that come of it."""

import asyncio
import hashlib
import hmac
import os
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, cast

import jwt
from context import context, tenants
from fastapi import APIRouter, Body, Depends, HTTPException
from models import Account, Plan, Subscription, User
from pydantic import StringConstraints
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import InvalidTokenError, ProvisioningError, TenantExistsError
from sqlalchemy_multitenant.integrations.extractors import from_jwt
from sqlalchemy_multitenant.integrations.fastapi import TenantDep
from sqlalchemy_multitenant.integrations.request import TenantRequest

DEVELOPMENT_KEY = "development-only-not-for-production"
SECRET_KEY = os.environ.get("SECRET_KEY") or DEVELOPMENT_KEY
ALGORITHM = "HS256"
TOKENS_LAST = timedelta(hours=8)

# The company's name is the tenant's id, and part of the host's name.
Company = Annotated[str, Body(pattern=r"^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$")]
Email = Annotated[
    str, StringConstraints(to_lower=True, max_length=254, pattern=r"^[!-?A-~]+@[!-?A-~]+$"), Body()
]
Password = Annotated[str, Body(min_length=8, max_length=200)]

router = APIRouter()


@router.post("/signup", status_code=201)
async def sign_up(company: Company, email: Email, password: Password) -> dict[str, str]:
    """A new tenant on the free plan, with its first user."""
    password_hash = await asyncio.to_thread(hash_password, password)

    def seed(session: Session) -> None:
        # Part of the transaction that creates the tenant. The shared schema is in its search path, so the
        # account is made in it as well: all of it is there in the end or nothing, with nothing to clean up.
        free = session.scalars(select(Plan.id).where(Plan.name == "free")).one()
        session.add_all([Subscription(plan_id=free), User(email=email)])
        session.add(Account(email=email, password_hash=password_hash, tenant=company))

    try:
        await tenants.create_tenant(company, seed=seed)
    except TenantExistsError:
        raise HTTPException(409, "this name is taken") from None
    except ProvisioningError as error:
        if isinstance(error.__cause__, IntegrityError):
            raise HTTPException(409, "this address has an account already") from None
        raise
    return {"token": make_token(company, email)}


@router.post("/login")
async def log_in(email: Email, password: Annotated[str, Body(max_length=200)]) -> dict[str, str]:
    # A short transaction of its own: no connection is in use while the password is looked at.
    account = await context.get_shared_db().scalar(select(Account).where(Account.email == email))
    # It takes as long where there is no account: nobody can tell who has one.
    stored = NOBODYS if account is None else account.password_hash
    is_right = await asyncio.to_thread(is_password, password, stored)
    if account is None or not is_right:
        raise HTTPException(401, "wrong address or password")
    return {"token": make_token(account.tenant, account.email)}


# -- tokens ---------------------------------------------------------------------------------------------


def make_token(tenant: str, email: str) -> str:
    """A token that says for which tenant it is, and who has it."""
    claims = {"tenant": tenant, "sub": email, "exp": datetime.now(UTC) + TOKENS_LAST}
    return jwt.encode(claims, SECRET_KEY, algorithm=ALGORITHM)


from_token = from_jwt(SECRET_KEY, algorithm=ALGORITHM)
_find_email = from_jwt(SECRET_KEY, algorithm=ALGORITHM, claim="sub")


async def find_user(tenant: str, request: TenantRequest) -> User:
    """The user of the token, from the tenant's own database: who is not there any more has no access."""
    user = await tenants.get_db(tenant).scalar(select(User).where(User.email == _find_email(request)))
    if user is None:
        raise InvalidTokenError("no such user")
    return user


async def get_user(tenant: TenantDep) -> User:
    """For endpoints: what `find_user` has put there."""
    return cast("User", tenant.data)


UserDep = Annotated[User, Depends(get_user)]


# -- passwords ------------------------------------------------------------------------------------------


def hash_password(password: str) -> str:
    """What is stored of a password: a salt, and what scrypt makes of both."""
    salt = secrets.token_bytes(16)
    return f"{salt.hex()}:{_scrypt(password, salt).hex()}"


def is_password(password: str, stored: str) -> bool:
    """Whether it is the password that was stored."""
    salt, _, key = stored.partition(":")
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt)), bytes.fromhex(key))


def _scrypt(password: str, salt: bytes) -> bytes:
    # https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html#scrypt
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=5)


NOBODYS = hash_password(secrets.token_hex())

"""What a cross-schema query refuses, and the statements that it builds; nothing here connects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar

import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    true,
    type_coerce,
)
from sqlalchemy.orm import aliased, outerjoin

from sqlalchemy_multitenant import (
    AsyncCrossSchemaQuery,
    AsyncTenantManager,
    ConfigurationError,
    Connection,
    CrossSchemaQuery,
    Schemas,
    TenantConfig,
    TenantManager,
    cross_schema_raw,
    optional,
    with_shared_lookup,
)
from sqlalchemy_multitenant.crossschema.raw import _PREFIX, RawSql
from sqlalchemy_multitenant.crossschema.rows import RowClass
from tests.models import Note, Plan, SharedBase, TenantBase, User

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers

T = TypeVar("T")

CONFIG = TenantConfig(
    connection=Connection(url="postgresql://nobody@127.0.0.1:1/nothing"),
    schemas=Schemas(tenant=TenantBase, shared=SharedBase),
)
MANAGER = TenantManager(CONFIG)
DB, SHARED = MANAGER.get_db("a"), MANAGER.get_shared_db()
# For calls that a type checker would refuse as well.
ASYNC: Any = AsyncTenantManager(CONFIG).get_db("a")
PAIR: Any = (DB, SHARED)
NOTHING: Any = ()
TEXT: Any = "plans"
TABLE: Any = User.__table__


def begun() -> CrossSchemaQuery:
    return CrossSchemaQuery(DB, SHARED).from_("tenant", User)


def left() -> CrossSchemaQuery:
    return begun().left_join("shared", Plan, User.plan_id == Plan.id)


def sql(query: Any) -> str:
    return " ".join(str(query.statement).split())


class TestOptional:
    """A mark is needed where NULL may come from a join, and refused where it cannot."""

    @pytest.mark.parametrize(
        "entity",
        [
            Plan.name,
            Plan,
            Plan.name.label("plan"),
            Plan.id + User.id,
            -Plan.id,
            cast(Plan.id, String),
            type_coerce(Plan.id, String),
            func.lower(Plan.name),
            func.coalesce(Plan.name, None),
            func.coalesce(Plan.name, null()),
            func.max(Plan.id),
            case((User.id == 1, Plan.name), else_="x"),
            case((User.id == 1, "x")),
            and_(User.id == 1, Plan.id == 1),
            func.row(Plan.id, 1),
            Plan.name.collate("C"),
            Plan.id.in_([1]),
            ~(Plan.id == 1),
            select(Note.id).where(Note.user_id == User.id).scalar_subquery(),
            select(func.count()).group_by(Note.user_id).scalar_subquery(),
            select(func.count()).select_from(Note).limit(1).scalar_subquery(),
            func.max(User.id).filter(User.id > 1),
            func.max(Plan.id).over(),
            func.mode().within_group(Plan.id),
            func.nullif(User.id, 1),
            func.stddev(User.id),
            func.lag(User.id).over(),
            func.max(User.id).over(order_by=User.id, rows=(None, -1)),
            func.coalesce(User.plan_id, User.plan_id),
            User.plan_id == 1,
            cast(User.plan_id, String),
            func.concat_ws(Plan.name, "a"),
            select(func.count()).select_from(Note).offset(1).scalar_subquery(),
            literal(None),
            null(),
        ],
        ids=str,
    )
    def test_what_may_be_missing_needs_the_mark(self, entity: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"write optional\("):
            _ = left().select(entity).statement
        assert left().select(optional(entity)).statement is not None

    @pytest.mark.parametrize(
        "entity",
        [
            User.id,
            User,
            User.plan_id,
            User.id + 1,
            func.coalesce(Plan.name, "none"),
            func.coalesce(Plan.name, User.name),
            func.count(Plan.id),
            func.count(),
            func.count(Plan.id).filter(Plan.id > 1),
            func.row_number().over(order_by=User.id),
            func.now(),
            func.concat(Plan.name, "!"),
            Plan.id.is_(None),
            Plan.id.is_not(None),
            Plan.id.is_distinct_from(User.id),
            exists().where(Plan.id == User.id),
            select(func.count()).select_from(Note).scalar_subquery(),
            case((Plan.id == 1, "x"), else_="y"),
            literal("x"),
            true(),
            cast(User.id, String),
        ],
        ids=str,
    )
    def test_what_is_always_there_refuses_it(self, entity: Any) -> None:
        assert left().select(entity).statement is not None
        with pytest.raises(ConfigurationError, match="take the mark off"):
            _ = left().select(optional(entity)).statement

    @pytest.mark.parametrize(
        "entity",
        [func.lower(User.name), literal_column("1"), func.my_own(1)],
        ids=str,
    )
    def test_where_nobody_can_tell_both_will_do(self, entity: Any) -> None:
        assert left().select(entity).statement is not None
        assert left().select(optional(entity)).statement is not None

    def test_an_aggregate_over_no_rows_needs_the_mark_unless_there_are_groups(self) -> None:
        with pytest.raises(ConfigurationError, match="nothing to aggregate"):
            _ = begun().select(func.sum(User.id)).statement
        assert begun().select(optional(func.sum(User.id))).statement is not None
        assert begun().select(func.sum(User.id)).group_by(User.name).statement is not None
        with pytest.raises(ConfigurationError, match="take the mark off"):
            _ = begun().select(optional(func.sum(User.id))).group_by(User.name).statement

    @pytest.mark.parametrize(
        ("join", "missing", "there"),
        [
            ("inner_join", [], [User.id, Plan.id]),
            ("left_join", [Plan.id], [User.id]),
            ("right_join", [User.id], [Plan.id]),
            ("full_join", [User.id, Plan.id], []),
        ],
    )
    def test_each_join_has_its_sides(self, join: str, missing: list[Any], there: list[Any]) -> None:
        query = getattr(begun(), join)("shared", Plan, User.plan_id == Plan.id)
        for entity in missing:
            with pytest.raises(ConfigurationError, match=r"write optional\("):
                query.select(entity)
            query.select(optional(entity))
        for entity in there:
            query.select(entity)
            with pytest.raises(ConfigurationError, match="take the mark off"):
                query.select(optional(entity))

    def test_a_later_join_makes_earlier_tables_optional(self) -> None:
        selected = begun().select(User.id)
        with pytest.raises(ConfigurationError, match=r"write optional\(User.id\)"):
            selected.right_join("tenant", Note, Note.user_id == User.id)
        with pytest.raises(ConfigurationError, match=r"write optional\(User.id\)"):
            selected.full_join("tenant", Note, Note.user_id == User.id)

    def test_what_was_optional_stays_so_after_an_inner_join(self) -> None:
        query = left().inner_join("tenant", Note, Note.user_id == User.id)
        query.select(Note.id, User.id, optional(Plan.id))
        with pytest.raises(ConfigurationError):
            query.select(Plan.id)

    def test_a_table_and_its_alias_are_two(self) -> None:
        other = aliased(Plan)
        query = left().inner_join("shared", other, other.id == User.plan_id)
        query.select(other.id, other, optional(Plan.id), optional(Plan))
        with pytest.raises(ConfigurationError, match="take the mark off"):
            query.select(optional(other))


class TestStatement:
    def test_joins(self) -> None:
        query = left().right_join("tenant", Note, Note.user_id == User.id)
        assert sql(query.select(Note.id)) == (
            "SELECT notes.id FROM notes LEFT OUTER JOIN (users LEFT OUTER JOIN plans "
            "ON users.plan_id = plans.id) ON notes.user_id = users.id"
        )
        assert "users FULL OUTER JOIN plans" in sql(
            begun().full_join("shared", Plan).select(optional(Plan.id))
        )

    def test_without_a_condition_the_foreign_key_decides(self) -> None:
        joined = sql(begun().inner_join("shared", Plan).select(User.id))
        assert joined == "SELECT users.id FROM users JOIN plans ON plans.id = users.plan_id"

    def test_all_clauses(self) -> None:
        query = (
            begun()
            .where(User.id > 1)
            .select(User.name, func.count().label("n"))
            .where(User.id < 9, User.name != "x")
            .group_by(User.name)
            .having(func.count() > 1)
            .order_by(User.name.desc(), "n")
            .limit(3)
            .offset(2)
            .distinct()
        )
        assert sql(query) == (
            "SELECT DISTINCT users.name, count(*) AS n FROM users "
            "WHERE users.id > :id_1 AND users.id < :id_2 "
            "AND users.name != :name_1 GROUP BY users.name HAVING count(*) > :count_1 "
            "ORDER BY users.name DESC, n LIMIT :param_1 OFFSET :param_2"
        )

    def test_a_cte_is_a_source(self) -> None:
        big = select(User.id, User.plan_id).where(User.id > 1).cte("big")
        query = (
            CrossSchemaQuery(DB, SHARED)
            .from_("tenant", big)
            .left_join("shared", Plan, big.c.plan_id == Plan.id)
        )
        assert sql(query.select(big.c.id, optional(Plan.name))).startswith("WITH big AS")
        with pytest.raises(ConfigurationError, match='say "tenant"'):
            CrossSchemaQuery(DB, SHARED).from_("shared", big)

    def test_each_method_leaves_the_query_as_it_was(self) -> None:
        first = begun()
        one, other = first.where(User.id == 1), first.where(User.id == 2)
        assert sql(first.select(User.id)) == "SELECT users.id FROM users"
        assert sql(one.select(User.id)) == sql(other.select(User.id))
        assert "AND" not in sql(one.select(User.id))


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: CrossSchemaQuery(SHARED, SHARED), "the handle of a tenant"),
            (lambda: CrossSchemaQuery(DB, DB), "the shared handle"),
            (
                lambda: CrossSchemaQuery(DB, TenantManager(CONFIG).get_shared_db()),
                "the manager that tenant_db",
            ),
            (
                lambda: CrossSchemaQuery(ASYNC, SHARED),
                "it must be a TenantDb",
            ),
            (lambda: AsyncCrossSchemaQuery(*PAIR), "a AsyncTenantDb"),
            (lambda: CrossSchemaQuery(TEXT, SHARED), "a TenantDb"),
            (lambda: begun().from_("tenant", Note), "the query has one already"),
            (lambda: CrossSchemaQuery(DB, SHARED).left_join("shared", Plan), r"begin with from_\(\)"),
            (lambda: CrossSchemaQuery(DB, SHARED).select(User.id), r"begin with from_\(\)"),
            (lambda: CrossSchemaQuery(DB, SHARED).from_("tenant", Plan), 'say "shared"'),
            (lambda: begun().left_join("shared", Note), 'say "tenant"'),
            (lambda: begun().left_join(TEXT, Plan), '"tenant" or "shared"'),
            (lambda: begun().left_join("shared", TEXT), "a mapped class, a table, or a subquery"),
            (lambda: left().left_join("shared", Plan), "is in the query already"),
            (lambda: begun().select(*NOTHING), "at least one column"),
            (lambda: begun().select(Note.id), "notes is not in the query: join it first"),
            (lambda: begun().select(Note), "notes is not in the query: join it first"),
            (lambda: begun().select(TABLE), "a column, an expression, or a mapped class"),
            (lambda: begun().select(TEXT), "a column, an expression, or a mapped class"),
        ],
    )
    def test_a_wrong_use_says_what_to_do(self, make: Callable[[], object], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            make()

    def test_a_lookup_by_a_key_of_two_columns(self) -> None:
        class Base2(SharedBase):
            __abstract__ = True
            metadata = MetaData()

        class Pair(Base2):
            __table__ = Table(
                "pairs",
                Base2.metadata,
                Column("a", Integer, primary_key=True),
                Column("b", Integer, primary_key=True),
            )

        with pytest.raises(ConfigurationError, match="is not one column; use CrossSchemaQuery"):
            with_shared_lookup(DB, SHARED, User, Pair, foreign_key=User.id)
        with pytest.raises(ConfigurationError, match="a mapped class"):
            with_shared_lookup(DB, SHARED, User, "plans", foreign_key=User.plan_id)  # type: ignore[call-overload]


def replaced(statement: str, **params: Any) -> str:
    raw = RawSql(statement, params, "public")
    return str(raw._text("tenant_a")).replace(_PREFIX, "")


class TestRaw:
    @pytest.mark.parametrize(
        ("given", "made"),
        [
            ("SELECT * FROM $tenant.users", 'SELECT * FROM "tenant_a".users'),
            ("TABLE $shared.plans", 'TABLE "public".plans'),
            ("($tenant.a,$shared.b)", '("tenant_a".a,"public".b)'),
            ("SELECT '$tenant' || $tenant.f()", "SELECT '$tenant' || \"tenant_a\".f()"),
            ("SELECT E'\\'$tenant', \"$tenant\"", "SELECT E'\\'$tenant', \"$tenant\""),
            (
                "-- $tenant\nSELECT /* $shared /* $tenant */ */ 1",
                "-- $tenant\nSELECT /* $shared /* $tenant */ */ 1",
            ),
            ("DO $$ $tenant $$", "DO $$ $tenant $$"),
            ("DO $tenant$ $tenant.x :no $tenant$", "DO $tenant$ $tenant.x :no $tenant$"),
            ("SELECT a$tenant, $1", "SELECT a$tenant, $1"),
            ("SELECT ':no', \":no\", 'it''s \\:no' /* :no */ -- :no", None),
            ("SELECT '12:30'::time, x::text, '{\"a\": 1}'::jsonb", None),
        ],
    )
    def test_only_code_is_replaced(self, given: str, made: str | None) -> None:
        assert replaced(given) == (given if made is None else made)

    def test_parameters(self) -> None:
        assert replaced("SELECT ':a', :a, $tenant.f(:b)", a=1, b="x") == "SELECT ':a', :a, \"tenant_a\".f(:b)"

    @pytest.mark.parametrize(
        ("statement", "params", "message"),
        [
            ("SELECT $tenants.x", {}, r"only \$tenant and \$shared"),
            ("SELECT :a", {}, "no value for a"),
            ("SELECT 1", {"a": 1}, "not in the statement: a"),
            ("SELECT ':a'", {"a": 1}, "not in the statement: a"),
        ],
    )
    def test_a_wrong_use_says_what_to_do(self, statement: str, params: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            cross_schema_raw(DB, statement, params)

    def test_needs_a_tenant(self) -> None:
        with pytest.raises(ConfigurationError, match="the handle of a tenant"):
            cross_schema_raw(SHARED, "SELECT 1")

    @pytest.mark.parametrize(
        ("statement", "params"),
        [
            ("SELECT :n::int, x::text", {"n": 1}),
            ("SELECT (ARRAY[1,2,3])[:2], (ARRAY[1,2,3])[1:2], a[i:j]", {}),
            ("SELECT f(a := :n)", {"n": 1}),
            (r"SELECT JSON_OBJECT('a' \: id)", {}),
        ],
    )
    def test_colons_that_begin_no_parameter(self, statement: str, params: dict[str, Any]) -> None:
        assert replaced(statement, **params) == statement.replace("\\:", ":")

    def test_other_things_than_sql(self) -> None:
        for arguments, message in (
            ((text("SELECT 1"),), "SQL as a str"),
            (("SELECT 1", [1]), "a dict"),
            (("SELECT 1; SELECT 2",), "one statement"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                cross_schema_raw(DB, *arguments)
        with pytest.raises(ConfigurationError, match="the handle of a tenant"):
            cross_schema_raw(TEXT, "SELECT 1")

    def test_a_name_that_looks_like_a_parameter(self) -> None:
        raw = RawSql("SELECT * FROM $tenant.users", {}, "public")
        assert str(raw._text('odd "x" :a')) == 'SELECT * FROM "odd ""x"" :a".users'


class AsNamedTuple(NamedTuple):
    id: int
    name: str | None = None


class AsTypedDict(TypedDict):
    id: int
    name: NotRequired[str | None]


@dataclass
class AsDataclass:
    id: int
    name: str | None = None


class AsModel(BaseModel):
    id: int
    name: str | None = None


class TestRows:
    @pytest.mark.parametrize("cls", [AsNamedTuple, AsTypedDict, AsDataclass, AsModel])
    def test_columns_are_held_against_fields(self, cls: type[Any]) -> None:
        rows = RowClass.of(cls)
        rows.check_columns(["id", "name"])
        rows.check_columns(["name", "id"])
        rows.check_columns(["id"])
        for columns, message in [
            (["name"], "no column id"),
            (["id", "nom"], "no field for nom"),
            (["id", "id"], "two columns called id"),
            ([], r"no column id \(columns: \)"),
        ]:
            with pytest.raises(ConfigurationError, match=message):
                rows.check_columns(columns)
        made = rows.make({"id": 1, "name": "x"})
        assert (made["id"] if isinstance(made, dict) else made.id) == 1

    @pytest.mark.parametrize("cls", [AsNamedTuple, AsTypedDict, AsDataclass])
    @pytest.mark.parametrize("value", [None, "1", 1.5])
    def test_a_value_of_another_type_is_refused(self, cls: type[Any], value: object) -> None:
        with pytest.raises(ConfigurationError, match=r"the query returned .* the field is int"):
            RowClass.of(cls).make({"id": value, "name": None})

    @pytest.mark.parametrize("cls", [int, str, dict, object, "AsModel"])
    def test_another_kind_of_class_is_refused(self, cls: Any) -> None:
        with pytest.raises(ConfigurationError, match="a NamedTuple, a dataclass"):
            RowClass.of(cls)

    def test_an_annotation_that_says_more_is_not_judged(self) -> None:
        @dataclass
        class Loose:
            anything: Any
            items: list[int]
            ratio: float

        rows = RowClass.of(Loose)
        assert rows.make({"anything": None, "items": [1], "ratio": 1}).ratio == 1


class Box(NamedTuple, Generic[T]):
    value: T


UserId = NewType("UserId", int)


@dataclass
class Partly:
    """One annotation is only there for type checkers."""

    name: str
    at: OnlyForTypeCheckers | None = None


@dataclass
class Strict:
    user: UserId
    kind: Literal["a", "b"]
    numbers: list[int]


class Aliased(BaseModel):
    id: int = Field(validation_alias=AliasChoices("user_id", "uid"))


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)
    id: int = Field(alias="userId")


class TestMoreRows:
    @pytest.mark.parametrize(
        ("cls", "right", "wrong"),
        [
            (Box[int], {"value": 1}, {"value": None}),
            (Partly, {"name": "x", "at": 1}, {"name": None, "at": 1}),
            (Strict, {"user": 1, "kind": "a", "numbers": [1]}, {"user": "1", "kind": "a", "numbers": [1]}),
            (Strict, {"user": 1, "kind": "b", "numbers": []}, {"user": 1, "kind": None, "numbers": [1]}),
            (Strict, {"user": 1, "kind": "b", "numbers": [2]}, {"user": 1, "kind": "a", "numbers": [None]}),
        ],
    )
    def test_what_is_accepted(self, cls: Any, right: dict[str, Any], wrong: dict[str, Any]) -> None:
        rows = RowClass.of(cls)
        rows.check_columns(list(right))
        assert rows.make(right)
        with pytest.raises(ConfigurationError, match="the query returned"):
            rows.make(wrong)

    def test_aliases_of_pydantic(self) -> None:
        for column in ("user_id", "uid"):
            RowClass.of(Aliased).check_columns([column])
            assert RowClass.of(Aliased).make({column: 1}).id == 1
        with pytest.raises(ConfigurationError, match="no column user_id; no field for id"):
            RowClass.of(Aliased).check_columns(["id"])
        for column in ("userId", "id"):
            RowClass.of(Open).check_columns([column, "more"])
            assert RowClass.of(Open).make({column: 1, "more": 2}).id == 1


class TestSources:
    """What makes NULL of columns inside a source."""

    def test_an_outer_join(self) -> None:
        joined = outerjoin(User, Plan, User.plan_id == Plan.id)
        query = CrossSchemaQuery(DB, SHARED).from_("tenant", joined)
        query.select(User.id, optional(Plan.name))
        with pytest.raises(ConfigurationError, match=r"write optional\(Plan.name\)"):
            query.select(Plan.name)

    def test_an_alias_of_a_subquery(self) -> None:
        inner = select(Plan).select_from(outerjoin(User, Plan, User.plan_id == Plan.id)).subquery()
        lossy = aliased(Plan, inner)
        query = CrossSchemaQuery(DB, SHARED).from_("tenant", lossy)
        query.select(optional(lossy.name), optional(lossy))
        for entity in (lossy.name, lossy):
            with pytest.raises(ConfigurationError, match=r"write optional"):
                query.select(entity)
        whole = aliased(User, select(User).where(User.id > 1).subquery())
        CrossSchemaQuery(DB, SHARED).from_("tenant", whole).select(whole.id, whole)

    def test_grouping_sets(self) -> None:
        query = begun().group_by(func.rollup(User.id))
        assert query.select(optional(User.id), func.count()).statement is not None
        for entity in (User.id, func.sum(User.id)):
            with pytest.raises(ConfigurationError, match="write optional"):
                _ = query.select(entity).statement
        with pytest.raises(ConfigurationError, match="write optional"):
            _ = begun().group_by().select(func.sum(User.id)).statement

    def test_elements_of_an_array(self) -> None:
        with pytest.raises(ConfigurationError, match="its elements may be None"):
            left().select(optional(func.array_agg(Plan.name)))
        left().select(optional(func.array_agg(Plan.name).filter(Plan.name.is_not(None))))

    def test_relationships(self) -> None:
        for entity in (User.plan, User.notes, optional(User.plan)):
            with pytest.raises(ConfigurationError, match="a relationship: join what it refers to"):
                left().select(entity)
        joined = begun().inner_join("tenant", Note, User.notes).select(Note.id)
        assert "JOIN notes ON users.id = notes.user_id" in sql(joined)

    def test_tables_that_are_not_there(self) -> None:
        for make in (
            lambda: begun().where(Plan.id == 1).select(User.id).statement,
            lambda: begun().order_by(Plan.id).select(User.id).statement,
            lambda: begun().left_join("tenant", Note, Note.id == Plan.id),
        ):
            with pytest.raises(ConfigurationError, match="plans is not in the query: join it first"):
                make()
        with pytest.raises(ConfigurationError, match=r"optional\(\) belongs in select\(\)"):
            begun().where(optional(User.id))  # type: ignore[arg-type]


class TestLookupKeys:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"foreign_key": Plan.id}, "a column of User"),
            ({"foreign_key": Note.user_id}, "a column of User"),
            ({"foreign_key": "plan_id"}, "a column of User"),
            ({"foreign_key": User.plan}, "a column of User"),
            ({"foreign_key": User.plan_id, "fields": Plan.name}, "a tuple of columns"),
        ],
        ids=range(5),
    )
    def test_wrong_uses(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            with_shared_lookup(DB, SHARED, User, Plan, **options)

    def test_one_that_refers_to_another_table(self) -> None:
        with pytest.raises(ConfigurationError, match=r"it refers to plans.id, and not to Other"):
            with_shared_lookup(DB, SHARED, User, Other, foreign_key=User.plan_id)


class Other(SharedBase):
    __table__ = Table("others", MetaData(), Column("id", Integer, primary_key=True))


def test_conditions_may_be_combined() -> None:
    query = begun().where(or_(User.id == 1, User.name == "x"), text("true")).select(User.id)
    assert "OR" in sql(query)

"""Indexes of those turns only that a release is asked for each second, however many there were: those that may be a session's last,
those that wait for a grade, those that are a figure, the unsafe ones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TABLE = "release_turns"
OF_EACH_SESSION = "ix_release_turns_release_session_arm_at"
OLD = {
    "ix_release_turns_release_counted_session": ["release", "counted", "session"],
    "ix_release_turns_to_grade_graded_at_at": ["to_grade", "graded_at", "at"],
}


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("followed", sa.Boolean, nullable=False, server_default=sa.false()))
    for name in OLD:
        op.drop_index(name, TABLE)
    op.create_index(OF_EACH_SESSION, TABLE, ["release", "session", "arm", "at"])
    for name, which in partial().items():
        op.create_index(name, TABLE, ["release", "arm", "at"], sqlite_where=which, postgresql_where=which)


def downgrade() -> None:
    for name in (OF_EACH_SESSION, *partial()):
        op.drop_index(name, TABLE)
    for name, columns in OLD.items():
        op.create_index(name, TABLE, columns)
    op.drop_column(TABLE, "followed")


def partial() -> dict[str, sa.ColumnElement[bool]]:
    """By name, which turns."""
    counted, followed, to_grade = (sa.column(name, sa.Boolean) for name in ("counted", "followed", "to_grade"))
    graded_at, reward, violations = (sa.column(name) for name in ("graded_at", "reward", "violations"))
    return {
        "ix_release_turns_last": sa.and_(counted.is_(False), followed.is_(False)),
        "ix_release_turns_waiting": sa.and_(to_grade.is_(True), graded_at.is_(None)),
        "ix_release_turns_figures": sa.or_(to_grade.is_(False), reward.is_not(None)),
        "ix_release_turns_unsafe": sa.func.json_array_length(violations) > sa.literal_column("0"),
    }

"""Cards keep what graders see of their row beyond question, reference answer and metadata. Those that are there have nothing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job_cards", sa.Column("item", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    op.drop_column("job_cards", "item")

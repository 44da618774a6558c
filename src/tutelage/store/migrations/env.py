"""Alembic runs this file. `store/migrate.py` passes the connection."""

from alembic import context

from tutelage.store.tables import Base

connection = context.config.attributes["connection"]
# Batch mode: SQLite cannot alter a table, so Alembic copies it instead.
context.configure(
    connection=connection, target_metadata=Base.metadata, render_as_batch=connection.dialect.name == "sqlite"
)
with context.begin_transaction():
    context.run_migrations()

"""Does the database answer, and is its schema at least what this code needs?"""

from django.db import connection
from django.db.migrations.executor import MigrationExecutor


def ping():
    # Broken on purpose: the table does not exist, so both health pages answer 503.
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM roster_heartbeat")
        cursor.fetchone()


def migrations():
    """Only what is missing counts: a schema that is ahead of the code is normal after a rollback."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if plan:
        names = ", ".join(f"{migration.app_label}.{migration.name}" for migration, _ in plan[:5])
        raise LookupError(f"{len(plan)} not applied: {names}")

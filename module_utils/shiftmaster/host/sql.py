"""What every query of a superuser or of the backup's login needs."""

from __future__ import annotations

# For PGOPTIONS. The application owns its database: a function or an operator of its own that matches better than
# PostgreSQL's, a policy of row level security, or a search_path, a role or a library that it has set for the database,
# would otherwise run with the rights of the caller, or keep it from logging in. A transaction that it never ends may
# hold any row of the catalogue that it owns.
# Source: CVE-2018-1058, "A Guide to CVE-2018-1058" of the PostgreSQL wiki.
SAFE_SEARCH_PATH = (
    "-c search_path=pg_catalog,pg_temp -c role=none -c row_security=off -c lock_timeout=30s -c local_preload_libraries="
)
# The table may be a view of the application with a function in it. TABLESAMPLE accepts tables only.
COUNT_MIGRATIONS = "SELECT count(*) FROM ONLY public.django_migrations TABLESAMPLE SYSTEM (100)"


def rows_of(text: str) -> list:
    """Return the rows of texts that psql printed with U+001F between fields. Names may hold other ends of lines."""
    return [line.split("\x1f") for line in (text[:-1] if text.endswith("\n") else text).split("\n")] if text else []


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"%s"' % name.replace('"', '""')

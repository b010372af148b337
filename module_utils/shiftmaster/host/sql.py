"""What every query of a superuser or of the backup's login needs."""

from __future__ import annotations

# For PGOPTIONS. The application owns its database: a function or an operator of its own that matches better than
# PostgreSQL's, or a search_path that it has set for the database, would otherwise run with the rights of the caller.
# Source: CVE-2018-1058, "A Guide to CVE-2018-1058" of the PostgreSQL wiki.
SAFE_SEARCH_PATH = "-c search_path=pg_catalog,pg_temp"


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"%s"' % name.replace('"', '""')

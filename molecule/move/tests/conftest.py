from pathlib import Path

import pytest
from support import Operations

SCENARIO = Path(__file__).resolve().parents[1]
APP = "/var/www/shiftmaster"
# Of each table its rows.
ROWS = """
SELECT string_agg(relname || ' ' || (xpath('/row/c/text()', query_to_xml(format(
         'SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) AS c FROM %I AS t', relname),
       false, true, '')))[1]::text, ', ' ORDER BY relname)
FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
  AND relname !~ '^(django_session|django_celery_|monitoring_)'
"""


class Host(Operations):
    """One of both; playbooks reach them under the name of the first one."""

    def rows(self) -> str:
        return self.sql(ROWS)

    def application(self) -> str:
        """How many processes of the application's units run, and whether it starts at a boot."""
        units = "'shiftmaster-web@*' 'shiftmaster-worker@*' 'shiftmaster-beat@*'"
        count = f"systemctl list-units --no-legend --state=active {units} | wc -l"
        return self.shell(f"{count}; systemctl is-enabled shiftmaster", check=False).split()

    def page(self) -> bool:
        return self.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/", check=False) == "503"

    def move(self, step: str, **extra):
        return self.run("playbooks/move.yml", timeout=3600, step=step, **extra)


@pytest.fixture(scope="session")
def old():
    host = Host(SCENARIO / "inventory", f"{SCENARIO.name}-trixie")
    assert host.live_version(60), "the host does not serve"
    host.manage("seed_demo")
    host.shell(f"cd {APP}/shared/media && mkdir -p a && echo plan > a/plan.txt && chown -R shiftmaster: a")
    return host


@pytest.fixture(scope="session")
def new():
    return Host(SCENARIO / "inventory", f"{SCENARIO.name}-target")

from pathlib import Path

import pytest
from support import USERS_ROWS, Operations

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"


class Host(Operations):
    def rows(self) -> str:
        return self.sql(USERS_ROWS)

    def major(self) -> int:
        return int(self.sql("SHOW server_version_num")) // 10000

    def clusters(self) -> list:
        """Version and state of each cluster."""
        return [line.split()[0:4:3] for line in self.shell("pg_lsclusters --no-header").splitlines()]

    def page(self) -> bool:
        return self.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/") == "503"

    def upgrade(self, *arguments: str, **extra):
        playbook = "playbooks/upgrade_postgresql.yml"
        return self.run(playbook, *arguments, timeout=1800, **{"major": 17, **extra})


@pytest.fixture(scope="session")
def host_of_all():
    host = Host(INVENTORY, "postgresql-upgrade-trixie")
    assert host.live_version(60), "the host does not serve"
    host.manage("seed_demo")
    return host

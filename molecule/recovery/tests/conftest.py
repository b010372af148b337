import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support import ROOT, Operations

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
RUNS = "/var/backups/shiftmaster/manifests"
# Name and content of each table that users write; in those of sessions and tasks the application itself does.
EVERY_TABLE = """
SELECT string_agg(relname || ' ' || (xpath('/row/c/text()', query_to_xml(format(
         'SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) AS c FROM %I AS t', relname),
       false, true, '')))[1]::text, ', ' ORDER BY relname)
FROM pg_stat_user_tables WHERE relname !~ '^(django_session|django_celery_|monitoring_)'
"""
EVERY_FILE = "cd /var/www/shiftmaster/shared/media && find . -type f -exec sha256sum {} + | sort -k2"


class Host(Operations):
    def sql(self, statement: str) -> str:
        return self.shell("runuser -u postgres -- psql -XqAt -d shiftmaster", stdin=statement).strip()

    def everything(self) -> tuple[str, str]:
        """Sums of every table and of every file that users have entered."""
        return self.sql(EVERY_TABLE), self.shell(EVERY_FILE)


class Repository(Host):
    def backup(self, **request) -> dict:
        name = self.shell("date -u +%Y%m%dT%H%M%SZ-000001").strip()
        self.shell("install -d -m 755 /run/shiftmaster-backup && install -d -m 700 /run/shiftmaster-backup/requests")
        self.shell(f"cat > /run/shiftmaster-backup/requests/{name}.json", stdin=json.dumps(request))
        self.shell(f"systemctl start shiftmaster-backup@{name}.service", timeout=1800, check=False)
        manifest = json.loads(self.shell(f"cat {RUNS}/{name}.json"))
        assert manifest["result"] == "succeeded", manifest
        return manifest


@pytest.fixture(scope="session")
def hosts():
    app, backup_server = Host(INVENTORY, "recovery-trixie"), Repository(INVENTORY, "recovery-repository")
    assert app.live_version(60), "the host does not serve"
    return SimpleNamespace(app=app, backup_server=backup_server, standby=Host(INVENTORY, "recovery-standby"))


@pytest.fixture
def alone(tmp_path):
    """The first host by an inventory in which it is everything."""
    tree = yaml.safe_load((INVENTORY / "hosts.yml").read_text(encoding="utf-8"))
    groups = tree["all"]["children"]
    hosts = groups["demo"]["hosts"]
    for name in set(hosts) - {"recovery-trixie"}:
        del hosts[name]
    hosts["recovery-trixie"]["demo_home"] = str(ROOT / ".cache/scenario")
    for group in ("backup", "standby"):
        del groups[group]
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return Repository(inventory, "recovery-trixie")

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support import ROOT, USERS_ROWS, Operations

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
RUNS = "/var/backups/shiftmaster/manifests"
EVERY_FILE = "cd /var/www/shiftmaster/shared/media && find . -type f -exec sha256sum {} + | sort -k2"


class Host(Operations):
    def everything(self) -> tuple[str, str]:
        """Sums of every table and of every file that users have entered."""
        return self.sql(USERS_ROWS), self.shell(EVERY_FILE)


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

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support import ROOT, Operations, address_of, by_ssh

SCENARIO = Path(__file__).resolve().parents[1]
# Where the site's inventory is, which the tests extend.
INVENTORY = ROOT / ".cache/grow/inventory"


# What a site has in its group_vars; those of the demo would win over the inventory's.
DEMO = yaml.safe_load((SCENARIO / "inventory/hosts.yml").read_text())["all"]["children"]["demo"]
SETTINGS = {name: one for name, one in DEMO["hosts"]["grow-trixie"].items() if not name.startswith("container_")}


class Host(Operations):
    def command(self, playbook: str, extra: dict, *arguments: str) -> list:
        return super().command(playbook, {**SETTINGS, **extra}, *arguments)

    def active(self, *units: str) -> list:
        return self.shell(f"systemctl is-active {' '.join(units)}; true").split()


@pytest.fixture(scope="session")
def site():
    INVENTORY.mkdir(parents=True, exist_ok=True)
    shutil.copy(SCENARIO / "inventory/hosts.yml", INVENTORY)
    hosts = {name: Host(INVENTORY, f"grow-{name}") for name in ("trixie", "data", "app2")}
    by_ssh(INVENTORY, list(hosts.values()))
    hosts["app1"] = hosts["trixie"]
    assert hosts["app1"].live_version(60), "the host does not serve"
    hosts["app1"].manage("seed_demo")
    hosts["app1"].shell("cd /var/www/shiftmaster/shared/media && echo plan > plan.txt && chown shiftmaster: plan.txt")
    return SimpleNamespace(**hosts)


@pytest.fixture(scope="session")
def grow():
    """Write a host into the inventory as `./shiftmaster grow` does."""

    def write(functions: str, host: str) -> None:
        subprocess.run(
            [
                ROOT / ".venv/bin/python", ROOT / "scripts/grow_inventory.py", INVENTORY / "hosts.yml", functions, host,
                address_of(host),
            ],
            check=True,
        )  # fmt: skip

    return write

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import SCENARIO_HOME, Operations, wait_for

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"


class Watch(Operations):
    """The host with Prometheus and Alertmanager; it asks them as a person would."""

    def secret(self, name: str) -> str:
        return (SCENARIO_HOME / "monitoring" / name).read_text().split()[0]

    def ask(self, url: str, *options: str, user: str = "admin") -> str:
        # The password by the standard input: everybody may read a process's arguments.
        return self.shell(
            f"curl -sS -m 20 --cacert /etc/ssl/shiftmaster/ca.crt -K - {' '.join(options)} {url}",
            stdin=f'user = "{user}:{self.secret("admin" if user == "admin" else "scrape")}"\n',
        )

    def query(self, expression: str) -> list:
        answer = json.loads(
            self.ask(
                "https://localhost:9090/api/v1/query",
                f"--data-urlencode query='{expression.replace(chr(39), chr(34))}'",
            )
        )
        assert answer["status"] == "success", (expression, answer)
        return answer["data"]["result"]

    def firing(self) -> set:
        alerts = json.loads(self.ask("https://localhost:9090/api/v1/alerts"))["data"]["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}


@pytest.fixture(scope="session")
def hosts():
    """app (deployed, with the primary), standby and watch."""
    made = {
        name: Operations(INVENTORY, f"monitoring-{host}") for name, host in (("app", "trixie"), ("standby", "standby"))
    }
    return SimpleNamespace(**made, watch=Watch(INVENTORY, "monitoring-watch"))


@pytest.fixture(scope="session")
def watch(hosts):
    """Prometheus, behind its first minute: everything that it asks for answers."""
    assert hosts.app.serves(60), "the application does not serve"
    hosts.app.manage("seed_demo")
    wait_for(lambda: not hosts.watch.query("up == 0"), 90, "all targets up")
    return hosts.watch

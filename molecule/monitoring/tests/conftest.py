import json
import time
from types import SimpleNamespace

import alerting as proofs
import mishaps
import pytest
from support import SAMPLE_SCENARIO, SCENARIO_HOME, Operations, inventory_and_host, wait_for

# A page that tests alone ask for.
ASKED = "/requests/"
INVENTORY, APP = inventory_and_host(__file__)


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

    def query(self, expression: str, since: float = 0) -> list:
        """What it is now; with since, what it was at any time since then."""
        return self.queries([(expression, since)])[0]

    def queries(self, asked: list) -> list:
        """Many of them, each (expression, since), by one command."""
        requests = []
        for expression, since in asked:
            form = {"query": " ".join(expression.replace("'", '"').split())}
            if since:
                form.update(start=f"{since:.0f}", end=f"{time.time():.0f}", step="5")
            words = {
                "url": f"https://localhost:9090/api/v1/query{'_range' if since else ''}", "max-time": "20",
                "user": f"admin:{self.secret('admin')}", "cacert": "/etc/ssl/shiftmaster/ca.crt", "write-out": "\\n",
            }  # fmt: skip
            lines = [f'{name} = "{value}"' for name, value in words.items()] + ["silent", "show-error"]
            for name, value in form.items():
                escaped = value.replace("\\", "\\\\").replace('"', '\\"')
                lines.append(f'data-urlencode = "{name}={escaped}"')
            requests.append("\n".join(lines))
        answers = [json.loads(line) for line in self.shell("curl -K -", stdin="\nnext\n".join(requests)).splitlines()]
        assert len(answers) == len(asked)
        for expression, answer in zip(asked, answers):
            assert answer["status"] == "success", (expression, answer)
        return [answer["data"]["result"] for answer in answers]

    def shows(self, *expressions: str, seconds: float = 90) -> None:
        """Wait until each of these has series."""
        for expression in expressions:
            wait_for(lambda asked=expression: self.query(asked), seconds, expression)

    def lately(self) -> list:
        """Labels of alerts that fire, or have ended and may still be told: Alertmanager does so within five minutes."""
        return [one["metric"] for one in self.query("ALERTS{alertstate='firing'}", time.time() - 360)]

    def settled(self) -> bool:
        """Whether what has ended was told."""
        now = [one["metric"] for one in self.query("ALERTS{alertstate='firing'}")]
        return all(one in now or one["alertname"] in proofs.BUDGETS for one in self.lately())

    @staticmethod
    def seen_once(app) -> None:
        """Series begin with what is seen first, also behind a reboot: test_deploys.py counts from here."""
        app.shell(f"curl -skS -o /dev/null https://shift.example.test{ASKED}")

    def firing(self) -> set:
        alerts = json.loads(self.ask("https://localhost:9090/api/v1/alerts"))["data"]["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}


@pytest.fixture(scope="session")
def hosts():
    """app (deployed, with the primary), standby and watch; in the sample one host that watches itself."""
    if SAMPLE_SCENARIO:
        return SimpleNamespace(app=Operations(INVENTORY, APP), watch=Watch(INVENTORY, APP))
    return SimpleNamespace(
        app=Operations(INVENTORY, APP),
        standby=Operations(INVENTORY, "monitoring-standby"),
        watch=Watch(INVENTORY, "monitoring-watch"),
    )


@pytest.fixture(scope="session")
def watch(hosts):
    """Prometheus, behind its first minute: everything that it asks for answers."""
    assert hosts.app.serves(60), "the application does not serve"
    hosts.app.manage("seed_demo")
    hosts.watch.seen_once(hosts.app)
    if not SAMPLE_SCENARIO:  # That host has backups.
        mishaps.backups_as_if(hosts.app)
    wait_for(lambda: not hosts.watch.query("up == 0"), 180, "all targets up")
    return hosts.watch


@pytest.fixture(scope="session")
def alerting(watch):
    """Receivers beside Alertmanager."""
    found = proofs.Alerting(watch.shell, password=watch.secret("admin"))
    found.start_receivers("alerts", "mail-of-the-test")
    return found

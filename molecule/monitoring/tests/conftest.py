import contextlib
import json
import time
from pathlib import Path
from types import SimpleNamespace

import alerting as verifications
import pytest
import scaled_rules
import service_faults
import yaml
from support import SAMPLE_SCENARIO, SCENARIO_HOME, Operations, inventory_and_host, load, wait_for

# Tests with the fixture `scaled` run after all others, with every duration of Prometheus divided by this.
FACTOR = 4
# The order of the files. What alerts do after failed deploys is seen while others run; and of the tests with divided
# durations, some need the series that faults have left, or some minutes of them.
FILES = ("test_deploys", "test_alertmanager", "test_metrics", "test_alerts", "test_costs")
FILES_SCALED = ("test_alerts", "test_deploys", "test_metrics", "test_costs")

# A page that only tests request.
REQUESTED = "/requests/"
INVENTORY, APP = inventory_and_host(__file__)


def pytest_collection_modifyitems(items):
    """Also in the sample, where tests of other scenarios stay where they are."""
    own = Path(__file__).parent
    places = [number for number, item in enumerate(items) if item.path.parent == own]

    def place(item) -> tuple:
        scaled = "scaled" in item.fixturenames
        return scaled, (FILES_SCALED if scaled else FILES).index(item.path.stem)

    ordered = sorted((items[number] for number in places), key=place)
    for number, item in zip(places, ordered):
        items[number] = item


class Watch(Operations):
    """The host with Prometheus and Alertmanager; it queries them as an operator would."""

    # By what the durations of the rules that run are divided.
    factor = 1

    def secret(self, name: str) -> str:
        return (SCENARIO_HOME / "monitoring" / name).read_text().split()[0]

    def request(self, url: str, *options: str, user: str = "admin") -> str:
        # The password by the standard input: every user can read a process's arguments.
        return self.shell(
            f"curl -sS -m 20 --cacert /etc/ssl/shiftmaster/ca.crt -K - {' '.join(options)} {url}",
            stdin=f'user = "{user}:{self.secret("admin" if user == "admin" else "scrape")}"\n',
        )

    def query(self, expression: str, since: float = 0) -> list:
        """The current value; with since, the values since then."""
        return self.queries([(expression, since)])[0]

    def queries(self, requested: list) -> list:
        """Many of them, each (expression, since), by one command."""
        requests = []
        for expression, since in requested:
            form = {"query": " ".join(expression.replace("'", '"').split())}
            if since:
                form.update(start=f"{since:.0f}", end=f"{time.time():.0f}", step=f"{5 / self.factor:g}")
            words = {
                "url": f"https://localhost:9090/api/v1/query{'_range' if since else ''}", "max-time": "20",
                "user": f"admin:{self.secret('admin')}", "cacert": "/etc/ssl/shiftmaster/ca.crt", "write-out": "\\n",
            }  # fmt: skip
            lines = [f'{name} = "{value}"' for name, value in words.items()] + ["silent", "show-error"]
            for name, value in form.items():
                escaped = value.replace("\\", "\\\\").replace('"', '\\"')
                lines.append(f'data-urlencode = "{name}={escaped}"')
            requests.append("\n".join(lines))
        responses = [json.loads(line) for line in self.shell("curl -K -", stdin="\nnext\n".join(requests)).splitlines()]
        assert len(responses) == len(requested)
        for expression, response in zip(requested, responses):
            assert response["status"] == "success", (expression, response)
        return [response["data"]["result"] for response in responses]

    def shows(self, *expressions: str, seconds: float = 90) -> None:
        """Wait until each of these has series."""
        for expression in expressions:
            wait_for(lambda requested=expression: self.query(requested), seconds, expression)

    def scale(self, factor: int) -> None:
        """Divide the durations of the scrapes and rules that run."""
        rules = self.shell("ls /etc/prometheus/alerts/*.yml").split()
        for path in ("/etc/prometheus/prometheus.yml", *rules):
            change = scaled_rules.rules if path in rules else scaled_rules.configuration
            # Into the same file: owner and mode stay.
            self.shell(f"cat >{path}", stdin=change(self.shell(f"cat {path}"), factor))
        before = self.intervals()
        self.shell("promtool check config /etc/prometheus/prometheus.yml && systemctl reload prometheus")
        wanted = {name: seconds / factor for name, seconds in before.items()}
        wait_for(lambda: self.intervals() == wanted, 60, "the divided intervals")
        self.factor = factor

    def forget_ended(self) -> None:
        """Restart Prometheus: it keeps what fires, and no longer sends what has ended."""
        self.shell("systemctl restart prometheus")
        request = "curl -sS -m 5 --cacert /etc/ssl/shiftmaster/ca.crt -K - https://localhost:9090/-/ready"
        login = f'user = "admin:{self.secret("admin")}"\n'
        wait_for(lambda: "Ready" in self.shell(request, stdin=login, check=False), 120, "Prometheus")

    def groups(self) -> list:
        return json.loads(self.request("https://localhost:9090/api/v1/rules"))["data"]["groups"]

    def rule(self, alert: str) -> dict:
        """An alert's rule, as it runs."""
        return next(rule for group in self.groups() for rule in group["rules"] if rule["name"] == alert)

    def intervals(self) -> dict:
        """How often each group of rules is evaluated and each job scraped, in seconds."""
        jobs = yaml.safe_load(json.loads(self.request("https://localhost:9090/api/v1/status/config"))["data"]["yaml"])[
            "scrape_configs"
        ]
        return {
            **{group["name"]: group["interval"] for group in self.groups()},
            **{job["job_name"]: scaled_rules.milliseconds(job["scrape_interval"]) / 1000 for job in jobs},
        }

    def lately(self) -> list:
        """Labels of alerts that fire, or have ended and may still be reported, within five minutes."""
        return [one["metric"] for one in self.query("ALERTS{alertstate='firing'}", time.time() - 360 / self.factor)]

    def quiet(self) -> bool:
        """Whether the end was reported."""
        now = [one["metric"] for one in self.query("ALERTS{alertstate='firing'}")]
        return all(one in now or one["alertname"] in verifications.BUDGETS for one in self.lately())

    @staticmethod
    def seen_once(app) -> None:
        """Series begin with what is seen first, also after a reboot: test_deploys.py counts from here."""
        app.shell(f"curl -skS -o /dev/null https://shift.example.test{REQUESTED}")

    def firing(self) -> set:
        alerts = json.loads(self.request("https://localhost:9090/api/v1/alerts"))["data"]["alerts"]
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
    """Prometheus, after its first minute: every target responds."""
    assert hosts.app.live_version(60), "the application does not serve"
    hosts.app.manage("seed_demo")
    hosts.watch.seen_once(hosts.app)
    if not SAMPLE_SCENARIO:  # That host has backups.
        service_faults.backups_as_if(hosts.app)
    wait_for(lambda: not hosts.watch.query("up == 0"), 180, "all targets up")
    return hosts.watch


@pytest.fixture(scope="session")
def alerting(watch):
    """Receivers next to Alertmanager."""
    found = verifications.Alerting(watch.shell, password=watch.secret("admin"))
    found.start_receivers("alerts", "mail-of-the-test")
    return found


@pytest.fixture(scope="session")
def scaled(watch, alerting):
    """Prometheus with the durations of its rules and scrapes divided, and Alertmanager; returns the divisor."""
    watch.scale(FACTOR)
    return FACTOR


@pytest.fixture(scope="session")
def observed(hosts, watch, alerting):
    """From before the first deploy until `seconds` after the last one, with users at work; .end() ends the latter."""
    wait_for(watch.quiet, 900, "the end of all alerts of the installation")
    with contextlib.ExitStack() as stack:
        yield SimpleNamespace(
            since=alerting.now(),
            # Mail of the installation had no receiver yet: that alert may still be pending.
            known={one["alertname"] for one in watch.lately()}
            | {one["metric"]["alertname"] for one in watch.query("ALERTS{alertstate='pending'}")},
            work=lambda: stack.enter_context(load(hosts.app, "--clients", "8", "--think-seconds", "0.3", seconds=1800)),
            end=stack.close,
            last=0.0,
        )

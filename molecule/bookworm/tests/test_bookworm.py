"""Debian 12 with its own PostgreSQL 15 and Python 3.11: the same application, healthy and sandboxed."""

import json
import re
from pathlib import Path

import ansible.module_utils
import pytest
from support import PEAKS, ROOT, SCENARIO_HOME, Operations, wait_for

ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.shiftmaster.diagnosis import database  # noqa: E402 - found where the line above leads.


@pytest.fixture(scope="module")
def operations():
    return Operations(Path(__file__).parent.parent / "inventory", "bookworm-host")


def test_page_and_health(operations):
    assert "ShiftMaster" in operations.shell("curl -skS https://localhost/login/")
    assert operations.live_version(30) == "2.0.0"


def test_versions_are_debian_12s(operations):
    assert operations.shell("runuser -u postgres -- psql -Atc 'show server_version'").startswith("15.")
    assert "3.11" in operations.shell("/var/www/shiftmaster/active/release/venv/bin/python --version")


@pytest.mark.parametrize("kind", ["web", "worker", "beat"])
def test_units_are_sandboxed(operations, kind):
    slot = operations.shell("basename $(readlink /var/www/shiftmaster/active)").strip()
    report = operations.shell(f"systemd-analyze security --no-pager shiftmaster-{kind}@{slot}")
    assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", report)[1]) <= 2.5, report


def test_no_unit_failed(operations):
    assert operations.shell("systemctl --failed --no-legend").strip() == ""


# --- it watches itself ------------------------------------------------------------------------------------------------


def query(operations, path: str) -> dict:
    # The password by the standard input: every user can read a process's arguments.
    password = (SCENARIO_HOME / "monitoring/admin").read_text().split()[0]
    return json.loads(
        operations.shell(
            f"curl -sS -m 20 --cacert /etc/ssl/shiftmaster/ca.crt -K - 'https://localhost:9090/api/v1/{path}'",
            stdin=f'user = "admin:{password}"\n',
        )
    )["data"]


def up(operations) -> dict:
    """{job: 1 or 0}"""
    return {one["metric"]["job"]: int(one["value"][1]) for one in query(operations, "query?query=up")["result"]}


def test_every_target_is_up_on_the_loopback(operations):
    # Targets for which Debian 12's exporters support no password are left out.
    jobs = {
        "shiftmaster", "postgres", "node", "mtail", "blackbox-http", "blackbox-icmp", "blackbox-tls", "blackbox",
        "prometheus", "alertmanager",
    }  # fmt: skip
    wait_for(lambda: set(up(operations)) == jobs, 120, "all jobs")
    wait_for(lambda: 0 not in up(operations).values(), 120, f"all targets up: {up(operations)}")
    probes = query(operations, "query?query=probe_success")["result"]
    assert {one["metric"]["job"]: one["value"][1] for one in probes} == {
        "blackbox-http": "1",
        "blackbox-icmp": "1",
        "blackbox-tls": "1",
    }


def test_rules_are_evaluated(operations):
    groups = query(operations, "rules")["groups"]
    assert len(groups) > 10
    assert {rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"} == set()


def test_monitoring_is_not_reachable_from_other_hosts(operations):
    lines = operations.shell("ss -Htln").splitlines()
    listening = [line.split()[3].rsplit(":", 1) for line in lines]
    watching = {"9090", "9093", "9100", "9115", "9187", "9443"}
    assert {port for _address, port in listening} >= watching
    assert {address for address, port in listening if port in watching} <= {"127.0.0.1", "[::1]"}


def test_memory_suffices_next_to_the_application(operations, capsys):
    """All of it on one host of 4 GB: Prometheus, Alertmanager and the exporters."""
    found = {unit: int(size) / 2**20 for unit, size in (line.split() for line in operations.shell(PEAKS).splitlines())}
    with capsys.disabled():
        print("".join(f"\n  {unit:45}{size:7.1f} MiB" for unit, size in sorted(found.items())))
        print(f"  {'all':45}{sum(found.values()):7.1f} MiB")
    assert len(found) == 6 and sum(found.values()) <= 600
    assert operations.live_version() == "2.0.0"


def test_the_diagnosis_runs_every_query_on_postgresql_15(operations, tmp_path):
    run = operations.run("playbooks/diagnose.yml", area="db", report_dir=str(tmp_path))
    assert run.code == 0, run.output[-4000:]
    report = json.loads((tmp_path / "diagnosis.json").read_text())
    database_part = report["hosts"][0]["parts"]["database"]
    assert (database_part["status"], database_part["errors"]) == ("ok", [])
    assert database_part["server"]["version"].startswith("15.") and database_part["server"]["number"] // 10000 == 15
    assert set(database.QUERIES) | set(database.STATEMENTS) <= set(database_part)
    assert {row["name"] for row in database_part["databases"]} >= {"shiftmaster", "postgres"}
    assert {row["table"] for row in database_part["tables"]} >= {"auth_user", "django_session"}
    assert database_part["most_time_together"] and database_part["statements_known"]
    # In the terminal, too.
    assert run.prints("PostgreSQL 15.", "Largest tables, dead rows, vacuum:", "django_session")


# --- last, since the host is of another system afterwards -------------------------------------------------------------


def test_debian_13_comes_in_place_by_the_guides_commands(operations, monkeypatch, tmp_path):
    # As ansible.cfg has it, and however long the upgrade takes.
    for name, value in (("", "jsonfile"), ("_CONNECTION", str(tmp_path)), ("_TIMEOUT", "0")):
        monkeypatch.setenv(f"ANSIBLE_CACHE_PLUGIN{name}", value)
    guide = (ROOT / "docs/guide/12-host.md").read_text().split("## From Debian 12 to Debian 13, in place\n")[1]
    host = next(block for block in guide.split("```\n")[1::2] if "full-upgrade" in block)
    cached = operations.run("deploy.yml", "--tags", "base")
    assert cached.code == 0, cached.output[-3000:]
    on = operations.run("playbooks/maintenance.yml", state="on", reason="Debian 13", end="23:59")
    assert on.code == 0, on.output[-3000:]
    commands = [line for line in host.splitlines() if line != "reboot"]
    operations.shell("\n".join(["set -e; export DEBIAN_FRONTEND=noninteractive", *commands]), timeout=1500)
    operations.reboot()
    new = {"postgresql_version": 15, "backup_postgresql_version": 15}
    stale = operations.run("deploy.yml", **new)
    assert stale.code == 2 and stale.prints("run it again with --flush-cache"), stale.output[-3000:]
    run = operations.run("deploy.yml", "--flush-cache", timeout=1800, **new)
    assert run.code == 0, run.output[-6000:]
    off = operations.run("playbooks/maintenance.yml", state="off")
    assert off.code == 0 and operations.live_version(60) == "2.0.0", off.output[-3000:]
    assert operations.shell("cat /etc/debian_version").startswith("13.")
    assert "3.13" in operations.shell("/var/www/shiftmaster/active/release/venv/bin/python --version")
    assert operations.shell("runuser -u postgres -- psql -Atc 'show server_version'").startswith("15.")
    assert "ShiftMaster" in operations.shell("curl -skS https://localhost/login/")
    assert operations.shell("systemctl --failed --no-legend").strip() == ""
    refused = operations.rollback()
    assert refused.code == 2 and refused.prints("a Python that this host does not have"), refused.output[-3000:]
    again = operations.run("deploy.yml", **new)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]

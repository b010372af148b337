"""Role prometheus on real hosts: what is refused, what is taken over, who reads, and two hundred targets."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from support import Operations, wait_for

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
PLAYBOOK = "molecule/prometheus/apply.yml"
AUTHORITY = "--cacert /etc/ssl/shiftmaster/ca.crt"
BAD_RULE = "groups:\n  - name: bad\n    rules:\n      - alert: Bad\n        expr: sum(\n"
GOOD_RULE = "groups:\n  - name: second\n    rules:\n      - record: second\n        expr: vector(%s)\n"


class Monitoring(Operations):
    password = "for people"

    def configure(self, *arguments, **extra):
        return self.run(PLAYBOOK, "--limit", self.host, *arguments, **extra)

    def request(self, path, user="admin", password=None):
        # The password by the standard input: every user can read a process's arguments.
        return self.shell(
            f"curl -sS -m 20 {AUTHORITY} -K - 'https://127.0.0.1:9090{path}'",
            stdin=f'user = "{user}:{password or self.password}"\n',
        )

    def query(self, expression):
        response = self.shell(
            f"curl -sS -m 20 {AUTHORITY} -K - --data-urlencode 'query={expression}' https://127.0.0.1:9090/api/v1/query",
            stdin=f'user = "admin:{self.password}"\n',
        )
        return json.loads(response)["data"]["result"]

    def rules(self):
        groups = json.loads(self.request("/api/v1/rules"))["data"]["groups"]
        return sorted(group["name"] for group in groups)

    def reboot(self):
        super().reboot()
        wait_for(lambda: "running" in self.shell("systemctl is-system-running", check=False), 120, "the boot")

    def pid(self):
        return self.shell("systemctl show --value --property=MainPID prometheus").strip()

    def files(self):
        """Everything that the role installs, with modes, owners and contents."""
        directories = "/etc/prometheus /etc/systemd/system/prometheus.service.d"
        return self.shell(
            f"find {directories} -printf '%p %m %u %g %T@\\n' | sort;"
            f" find {directories} -type f | sort | xargs sha256sum"
        )


@pytest.fixture(scope="module")
def running():
    """Prometheus as the playbook wants it, without what a test added."""
    monitoring = Monitoring(INVENTORY, "prometheus-trixie")
    done = monitoring.configure()
    assert done.code == 0, done.output
    return monitoring


@pytest.fixture(scope="module")
def fresh():
    """A host without it."""
    return Monitoring(INVENTORY, "prometheus-fresh")


@pytest.fixture
def as_before(running):
    """For tests that leave files."""
    yield running
    running.release_hold()
    done = running.configure()
    assert done.code == 0, done.output


# --- a host without it ----------------------------------------------------------------------------------------------


def test_check_mode_on_an_empty_host_reports_changes_and_makes_none(fresh):
    before = fresh.fingerprint()
    done = fresh.configure("--check", "--diff")
    assert done.code == 0 and done.changed == 3, done.output
    assert done.prints("/etc/prometheus/prometheus.yml", "--storage.tsdb.retention.time=62d")
    assert "for-scrapes" not in done.output and "for people" not in done.output
    assert fresh.fingerprint() == before


def test_it_requires_a_password_while_it_is_installed(fresh):
    """Debian's package would start it at once and at each boot, on every address and without a password."""
    if fresh.shell("ls /usr/bin/prometheus 2>/dev/null", check=False):
        pytest.skip("Prometheus is installed already")
    done = fresh.configure(wanted_password_file="/etc/prometheus/secrets/none")
    assert done.code != 0 and done.prints("secrets/none does not exist"), done.output
    fresh.reboot()
    fresh.shell("systemctl start prometheus")
    assert fresh.shell("systemctl is-active prometheus", check=False).strip() == "inactive"
    done = fresh.configure()
    assert done.code == 0, done.output
    journal = fresh.shell("journalctl --no-pager --output=cat --unit=prometheus")
    assert journal.count("Listening on") == 1 and "TLS is disabled" not in journal, journal


def test_a_second_run_changes_nothing(running):
    done = running.configure("--diff")
    assert done.code == 0 and done.changed == 0, done.output


def test_a_reboot_needs_no_run(running):
    running.reboot()
    assert running.shell("systemctl is-active prometheus").strip() == "active"
    done = running.configure()
    assert done.code == 0 and done.changed == 0, done.output


# --- who reads ------------------------------------------------------------------------------------------------------


def test_reading_from_another_host_requires_a_password(running):
    """From the machine that runs the tests, through the network of the containers."""
    address = running.shell("hostname -I").split()[0]
    for path in ("/", "/metrics", "/api/v1/targets", "/federate?match[]=up", "/-/healthy", "/config"):
        code = subprocess.run(
            ["curl", "-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", f"https://{address}:9090{path}"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        assert code == "401", path
    plain = subprocess.run(
        ["curl", "-s", "-m", "10", f"http://{address}:9090/metrics"], capture_output=True, text=True, check=False
    )
    assert "HTTP request to an HTTPS server" in plain.stdout


def test_it_scrapes_with_tls_a_password_and_the_configured_labels(running):
    wait_for(lambda: [s for s in running.query("up") if s["value"][1] == "1"], 30, "the first scrape")
    (series,) = running.query("up")
    assert series["metric"] == {
        "__name__": "up",
        "job": "prometheus",
        "env": "test",
        "role": "monitoring",
        "instance": "mon1",
    }


def test_a_new_password_is_in_use_without_a_reload_and_the_old_one_ends(as_before):
    pid = as_before.pid()
    done = as_before.configure(wanted_admin_password="another one")
    assert done.code == 0 and done.changed == 1, done.output
    assert "another one" not in done.output
    assert as_before.pid() == pid
    assert as_before.request("/-/healthy", password="another one").startswith("Prometheus")
    assert "Unauthorized" in as_before.request("/-/healthy", password="for people")


def test_no_secret_is_in_arguments_logs_or_open_files(running):
    found = running.shell("grep -lr -e for-scrapes -e 'for people' /etc /var/log || true")
    assert found.split() == ["/etc/prometheus/secrets/scrape"]
    assert running.shell("stat -c '%a %U %G' /etc/prometheus/secrets/scrape").strip() == "640 root prometheus"
    shown = running.shell("tr '\\0' ' ' < /proc/$(systemctl show --value -p MainPID prometheus)/cmdline")
    assert "for-" not in shown


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"wanted_more_rules": {"bad": BAD_RULE}}, "/etc/prometheus/alerts/bad.yml"),
        (
            {"wanted_more_rules": {"twice": GOOD_RULE % 1 + "      - record: second\n        expr: vector(2)\n"}},
            "duplicate",
        ),
        ({"wanted_password_file": "/etc/prometheus/secrets/none"}, "/etc/prometheus/secrets/none does not exist"),
        ({"wanted_password_file": "/etc/shadow"}, "/etc/shadow cannot be read by prometheus"),
        ({"wanted_password_file": "/etc/passwd"}, "/etc/passwd can be read by everybody"),
        ({"prometheus_external_labels": {"1bad": "x"}}, "is not a valid label name"),
        ({"prometheus_web_users": []}, "anybody could read it"),
        ({"prometheus_retention_days": "many"}, "prometheus_retention_days"),
    ],
    ids=["rule", "lint", "no secret", "closed secret", "open secret", "label", "no users", "type"],
)
def test_a_rejected_configuration_is_reported_and_the_old_one_keeps_running(running, extra, message):
    files, pid, rules = running.files(), running.pid(), running.rules()
    done = running.configure(**extra)
    assert done.code != 0 and done.prints(message), done.output
    assert running.files() == files and running.pid() == pid and running.rules() == rules
    assert running.query("prometheus_config_last_reload_successful")[0]["value"][1] == "1"


def test_check_mode_warns_of_it(running):
    files = running.files()
    done = running.configure("--check", wanted_more_rules={"bad": BAD_RULE})
    assert done.prints("would be rejected", "bad.yml"), done.output
    assert running.files() == files


def test_a_configuration_that_only_prometheus_rejects_is_reverted(running):
    """promtool is made to find nothing: `systemctl reload` ends with 0 all the same."""
    files, pid = running.files(), running.pid()
    running.shell("mount --bind /usr/bin/true /usr/bin/promtool")
    try:
        done = running.configure(prometheus_reload_timeout_seconds=8, wanted_more_rules={"bad": BAD_RULE})
    finally:
        running.shell("umount /usr/bin/promtool")
    assert done.code != 0, done.output
    assert done.prints("last_reload_successful is 0", "The earlier files are back in place and in use", "bad.yml")
    assert [line for line in running.files().splitlines() if line not in files and "bad" in line] == []
    assert running.rules() == ["first"] and running.pid() == pid
    assert running.configure().changed == 0


@pytest.mark.parametrize(
    "extra", [{"wanted_address": "127.0.0.1:1"}, {"wanted_secret": "wrong"}], ids=["address", "password"]
)
def test_a_lost_target_reverts_the_configuration(running, extra):
    wait_for(lambda: [s for s in running.query("up") if s["value"][1] == "1"], 30, "the target")
    done = running.configure(**extra)
    assert done.code != 0 and done.prints("targets that were up are down: prometheus mon1", "back in place and in use")
    wait_for(lambda: [s for s in running.query("up") if s["value"][1] == "1"], 30, "the target again")
    assert running.configure().changed == 0


# --- what is taken over ---------------------------------------------------------------------------------------------


def test_rules_are_added_and_removed_by_a_reload(as_before):
    pid = as_before.pid()
    done = as_before.configure("--diff", wanted_more_rules={"second": GOOD_RULE % 2})
    assert done.code == 0 and done.changed == 1 and as_before.rules() == ["first", "second"], done.output
    assert done.prints("record: second")
    assert as_before.configure().changed == 1
    assert as_before.rules() == ["first"] and as_before.pid() == pid
    assert as_before.shell("ls /etc/prometheus/alerts").split() == ["first.yml"]


def test_a_run_killed_between_swap_and_reload_is_repaired(as_before, tmp_path):
    as_before.hold("service_swapped")
    log = tmp_path / "log"
    process = as_before.start(PLAYBOOK, log, "--limit", as_before.host, wanted_more_rules={"second": GOOD_RULE % 3})
    pid = as_before.wait_at("service_swapped", process, log)
    as_before.shell(f"kill -KILL {pid}")
    process.wait(120)
    as_before.release_hold()
    assert "second.yml" in as_before.shell("ls /etc/prometheus/alerts")
    assert as_before.rules() == ["first"], "nobody has reloaded it"
    done = as_before.configure(wanted_more_rules={"second": GOOD_RULE % 3})
    assert done.code == 0 and done.changed == 1, done.output
    assert as_before.rules() == ["first", "second"]
    assert as_before.configure(wanted_more_rules={"second": GOOD_RULE % 3}).changed == 0


def test_another_retention_restarts_it_and_is_verified(as_before):
    pid = as_before.pid()
    done = as_before.configure(prometheus_retention_days=70, prometheus_retention_size_mb=1536)
    assert done.code == 0 and done.changed == 1, done.output
    flags = json.loads(as_before.request("/api/v1/status/flags"))["data"]
    assert flags["storage.tsdb.retention.time"] == "10w" and flags["storage.tsdb.retention.size"] == "1GiB512MiB"
    assert as_before.pid() != pid
    assert as_before.query("up"), "the data of before are gone"
    again = as_before.configure(prometheus_retention_days=70, prometheus_retention_size_mb=1536)
    assert again.changed == 0


def test_one_that_was_stopped_or_changed_by_hand_is_put_right(running):
    running.shell("systemctl stop prometheus && rm /etc/prometheus/alerts/first.yml")
    done = running.configure()
    assert done.code == 0 and done.changed == 1 and running.rules() == ["first"], done.output


def test_a_renewed_certificate_is_presented_at_once(running):
    """The toolkit reads it for each connection; nothing is to be reloaded."""
    running.shell(
        "cp -p /etc/ssl/shiftmaster/host.crt /root/host.crt && cat /root/host.crt >/etc/ssl/shiftmaster/host.crt"
    )
    assert running.request("/-/healthy").startswith("Prometheus")
    assert running.configure().changed == 0


# --- the unit -------------------------------------------------------------------------------------------------------


def test_the_unit_is_closed_and_sees_its_own_metrics(running):
    exposure = running.shell("systemd-analyze security --no-pager prometheus.service | tail -1")
    assert "OK" in exposure, exposure
    assert running.query("process_resident_memory_bytes")
    pid = running.pid()
    status = running.shell(f"cat /proc/{pid}/status")
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    assert running.shell(f"nsenter -t {pid} -m touch /etc/prometheus/x 2>&1", check=False).count("Read-only") == 1
    assert "GOMEMLIMIT=360MiB" in running.shell(f"tr '\\0' '\\n' </proc/{pid}/environ")
    assert int(running.shell("systemctl show --value -p MemoryMax prometheus")) == 400 * 1024 * 1024


# --- size -----------------------------------------------------------------------------------------------------------

EXPORTER = """
import http.server, sys
page = ''.join('synthetic_%d{cpu="%d"} %d\\n' % (n // 8, n % 8, n) for n in range(500)).encode()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Type', 'text/plain; version=0.0.4')
        self.send_header('Content-Length', str(len(page)))
        self.end_headers()
        self.wfile.write(page)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(('127.0.0.1', 8000), Handler).serve_forever()
"""


def test_two_hundred_targets(as_before, capsys):
    """One process serves all of them, on the loopback: 500 series each, every 15 s; this repository's rules."""
    as_before.shell("cat > /root/exporter.py", stdin=EXPORTER)
    as_before.shell("systemd-run --quiet --collect --unit=synthetic python3 /root/exporter.py")
    targets = [
        {"address": "127.0.0.1:8000", "labels": {"env": "test", "role": "app", "instance": f"host{n}"}}
        for n in range(200)
    ]
    # The same address 200 times is refused for a job, so each is a parameter's value of its own.
    job = {
        "name": "synthetic",
        "scheme": "http",
        "targets": [dict(target, address=f"host{n}.test:8000") for n, target in enumerate(targets)],
        "relabel_configs": [{"target_label": "__address__", "replacement": "127.0.0.1:8000"}],
    }
    try:
        done = as_before.configure(wanted_more_jobs=[job], wanted_all_rules=True)
        assert done.code == 0, done.output
        wait_for(lambda: up(as_before) == 200, 120, "all of them")
        time.sleep(60)
        assert up(as_before) == 200
        memory = int(as_before.shell("systemctl show --value -p MemoryCurrent prometheus")) / 1048576
        series = as_before.query("prometheus_tsdb_head_series")[0]["value"][1]
        (_at, seconds) = as_before.query("sum(prometheus_rule_group_last_duration_seconds)")[0]["value"]
        with capsys.disabled():
            print(f"\n  200 targets, {series} series: {memory:.0f} MiB, {seconds} s for one round of all rules")
        assert int(as_before.shell("systemctl show --value -p MemoryMax prometheus")) == 1205 * 1048576
        assert as_before.shell("systemctl show --value -p NRestarts prometheus").strip() == "0"
        assert as_before.configure(wanted_more_jobs=[job], wanted_all_rules=True).changed == 0
    finally:
        as_before.shell("systemctl stop synthetic", check=False)


def up(monitoring):
    found = monitoring.query('sum(up{job="synthetic"})')
    return int(found[0]["value"][1]) if found else 0

"""Measurements exist: every target, every series that a rule, a recording or a panel names."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import fireable
import panel_queries
import private_keys
import pytest
import service_faults
import yaml
from support import ROOT, load, wait_for

RULES = sorted((ROOT / "monitoring/rules").glob("*.yml"))
# A name, with its matchers, that is no function, keyword, label list or duration.
LABELS = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
SELECTOR = re.compile(r"(?<![\w:\"])([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^{}]*\})?(?!\s*\(|[\w:\"])")
KEYWORDS = {
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "inf",
    "nan",
}


def selectors(expression: str) -> set:
    # Ranges, and not the classes of characters of a matcher.
    text = LABELS.sub("", re.sub(r"\[\d[^\]]*\]", "", expression))
    # Values of matchers hold words, too.
    found = set()
    for match in SELECTOR.finditer(re.sub(r'"[^"]*"', lambda value: value[0].replace("(", "\x01"), text)):
        name, matchers = match[1], (match[2] or "").replace("\x01", "(")
        inside = text.rfind("{", 0, match.start()) > text.rfind("}", 0, match.start())
        if name not in KEYWORDS and not inside:
            found.add(name + matchers)
    return found


# Queries that are empty on a healthy site; `used` has ensured that they are not.
UNDER_A_FAULT = re.compile(r'^ALERTS|^shiftmaster:outage:|status=~"5|err=~"OOM|wait_event_type="Lock"')

# Metrics without a source here: no host collects logs. What writes these metrics is verified in the scenario
# `logging`.
ELSEWHERE = re.compile(r"\bshiftmaster_(log_canary_|filebeat_|logstash_|elasticsearch_|logging)")


# Series that nothing has here, and why.
NOT_HERE = {
    "node_md_": "containers have no RAID",
    "node_edac_": "containers have no memory controller",
    "shiftmaster_host_filesystem_errors": "the machine may have no ext4",
    "alertmanager_cluster_members": "one Alertmanager is no cluster",
    'job="blackbox-external"': "there is no other site",
    'name="etcd.service"': "one database host is no cluster",
    'name="redis-sentinel.service"': "one Redis has no Sentinel",
    "shiftmaster_host_virtual_address_held": "one web server has no address of its own",
    'wait_event="SyncRep"': "commits wait for a standby only in test_alerts.py, where the alert fires",
    'up{job=~"redis|nginx|grafana"} offset 1h': "a job that was there an hour ago and is gone: promtool's case has it",
}


def of_yesterday() -> str:
    """A stub: metrics of the day before, with which the panel of backups compares, as promtool restores them."""
    labels = 'env="demo",instance="monitoring-trixie",job="node"'
    began = round(time.time()) - 86400 - 3600
    return "\n".join(
        ["# TYPE shiftmaster_backup_size_bytes gauge"]
        + [
            f'shiftmaster_backup_size_bytes{{{labels},kind="{kind}"}} 9000000 {began + seconds}'
            for kind in service_faults.KINDS
            for seconds in range(0, 3 * 3600, 60)
        ]
        + ["# EOF", ""]
    )


@pytest.fixture(scope="module")
def used(hosts, watch, scaled):
    """Some minutes of use, and of what goes wrong: until each of it is seen."""
    # The panels' marks of deploys are from the first minutes in which the release was seen.
    began = float(watch.query("min(process_start_time_seconds{job='prometheus'})")[0]["value"][1])
    app, shows = hosts.app, watch.shows
    watch.shell(
        "install -m 0644 /dev/stdin /run/yesterday && cd /var/lib/prometheus/metrics2 && "
        "runuser -u prometheus -- promtool tsdb create-blocks-from openmetrics --quiet /run/yesterday .",
        stdin=of_yesterday(),
    )
    with load(app, "--clients", "4", "--think-seconds", "0.5", seconds=1800):
        shows("rate(django_request_duration_seconds_count[1m]) > 0", seconds=120)
        app.python(
            "from roster.tasks import build_draft, record_run\n"
            "build_draft.delay(0, 'no month')\n[record_run.delay('seen', 0) for _ in range(5)]"
        )
        shows("increase(shiftmaster_celery_tasks_total{state='FAILURE'}[5m]) > 0", seconds=180)
        app.shell("curl -skS -o /dev/null https://shift.example.test/nowhere/")
        with service_faults.table_missing(app):
            shows(
                "nginx_http_requests_total{status=~'5..'}",
                "django_http_responses_total_by_status_view_method_total{status=~'5..'}",
                "django_http_exceptions_total_by_type_total", "django_db_errors_total",
            )  # fmt: skip
        with service_faults.lock_wait(app):
            shows("pg_stat_activity_count{wait_event_type='Lock'}", "pg_lock_longest_wait_seconds > 0")
        with service_faults.redis_full(app):
            shows("redis_errors_total{err='OOM'}")
        with service_faults.unit_failed(app):
            shows("node_systemd_unit_state{name='broken.service',state='failed'} == 1")
        with service_faults.deadlock(app):
            shows("ALERTS{alertstate='firing',severity='warning'}")
        with service_faults.units_stopped(app, "postgresql@17-main.service"):
            shows("ALERTS{alertstate='firing',severity='critical'}", "shiftmaster:outage:last10m")
        # The certificate is read every five minutes, perhaps while PostgreSQL was stopped.
        app.shell("systemctl start shiftmaster-host-metrics.service")
        shows("shiftmaster_host_certificate_end_timestamp_seconds")
        # The standby resolves the primary again and again.
        shows("pg_stat_replication_pg_wal_lsn_diff{state='streaming'}")
        # Blocks of data that were copied there are found once a minute.
        shows("shiftmaster_backup_size_bytes offset 1d", seconds=180)
        yield SimpleNamespace(watch=watch, began=began)


def without_series(used, requested: dict) -> set:
    """{expression: whether it is empty on a healthy site}. Such an expression had series during a fault."""
    pairs = [
        (expression, used.began if empty else 0)
        for expression, empty in requested.items()
        if not ELSEWHERE.search(expression)
    ]
    found = [series for start in range(0, len(pairs), 50) for series in used.watch.queries(pairs[start : start + 50])]
    return {expression for (expression, _since), series in zip(pairs, found) if not series}


def test_every_target_is_up(watch):
    jobs = {one["metric"]["job"] for one in watch.query("up")}
    assert jobs >= {
        "shiftmaster", "postgres", "node", "redis", "nginx", "mtail", "blackbox-http", "blackbox-icmp",
        "blackbox-tls", "blackbox", "prometheus", "alertmanager",
    }  # fmt: skip
    # Tests before this one have restarted some: the next scrape finds them up.
    for down in ("up == 0", "probe_success == 0"):
        wait_for(lambda requested=down: not watch.query(requested), 60, f"no series of {down}")
    assert {one["metric"]["instance"] for one in watch.query("up{job='node'}")} == {
        "monitoring-trixie", "monitoring-watch", "monitoring-standby",
    }  # fmt: skip


def test_the_standby_streams(watch):
    """On both sides: the primary feeds it by its slot, and it reports that it is one."""
    (feeding,) = watch.query("pg_stat_replication_pg_wal_lsn_diff{state='streaming'}")
    assert feeding["metric"]["instance"] == "monitoring-trixie" and float(feeding["value"][1]) < 16 * 2**20
    (slot,) = watch.query("pg_replication_slots_active")
    assert (slot["metric"]["slot_name"], slot["value"][1]) == ("standby", "1")
    (replica,) = watch.query("pg_replication_is_replica == 1")
    assert replica["metric"]["instance"] == "monitoring-standby"


def test_every_series_of_every_rule_is_there(used):
    rules = {
        rule.get("alert") or rule["record"]: selectors(rule["expr"])
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    }
    requested = {
        one: bool(UNDER_A_FAULT.search(one))
        for found in rules.values()
        for one in found
        # Others are silent while the monitoring host reaches no host, which it does here.
        if not any(text in one for text in (*NOT_HERE, "MonitoringIsolated"))
    }
    missing = without_series(used, requested)
    assert {name: found & missing for name, found in rules.items() if found & missing} == {}


def test_every_query_of_every_panel_has_series(used):
    """And so have all series in it: a sum and `or vector(0)` would hide that one is gone."""
    panels = panel_queries.queries(__rate_interval="2m")
    requested = {}
    for one in panels:
        for expression in (*one["selectors"], one["expr"]):
            # Series that one panel always expects exist for another one, too.
            requested[expression] = requested.get(expression, True) and bool(one["empty_when_healthy"])
    missing = without_series(used, requested)
    assert {
        f"{one['dashboard']}: {one['title']}": found
        for one in panels
        if (found := missing & {*one["selectors"], one["expr"]})
    } == {}


def test_every_rule_would_fire(used):
    """Each branch of each alert, completely and without thresholds, has series with the labels that its texts name."""
    requested = {
        (rule["alert"], expression): labels
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
        for expression, labels in fireable.queries_of(rule).items()
        if not ELSEWHERE.search(expression) and not any(text in expression for text in NOT_HERE)
    }
    assert len(requested) > 100
    keys, found = list(requested), []
    for start in range(0, len(keys), 50):
        found += used.watch.queries([(expression, used.began) for _alert, expression in keys[start : start + 50]])
    wrong = {}
    for key, series in zip(keys, found):
        lacking = set().union(
            *(requested[key] - {name for name, value in one["metric"].items() if value} for one in series)
        )
        if not series or lacking:
            wrong[key] = sorted(lacking) or "no series"
    assert wrong == {}


def test_rules_are_evaluated(watch):
    # After a restart the health of a rule is unknown until it is evaluated.
    def rules(health: str) -> set:
        return {rule["name"] for group in watch.groups() for rule in group["rules"] if rule["health"] == health}

    wait_for(lambda: not rules("unknown"), 180, "the evaluation of all rules")
    assert rules("ok") and rules("err") == set()


@pytest.mark.parametrize("path", ["/metrics", "/shiftmaster/metrics", "/mtail/metrics", "/metrics/"])
def test_the_public_site_shows_no_metrics(hosts, watch, path):
    code = watch.shell(f"curl -skS -o /dev/null -w '%{{http_code}}' https://shift.example.test{path}")
    assert code == "404"


@pytest.mark.parametrize(
    "address",
    ["9100/metrics", "9187/metrics", "9121/metrics", "9113/metrics", "9443/mtail/metrics", "9443/shiftmaster/metrics"],
)
def test_reading_requires_a_password(hosts, watch, address):
    url = f"https://172.30.84.10:{address}"
    assert watch.shell(f"curl -skS -m 10 -o /dev/null -w '%{{http_code}}' {url}") == "401"
    # Others do not even come to the door.
    assert hosts.standby.shell(f"curl -sk -m 4 -o /dev/null {url}; echo $?").strip() == "28"


PATHS = ("/", "/metrics", "/api/v2/status")
# Results of curl where nothing serves HTTP: refused, no response, or another protocol.
CLOSED, OTHERS = {7, 28}, {1, 35, 52, 56}
# Ports of what watches, by host; the web server's needs a password for what it shows and has nothing at `/`.
WATCHING = {
    "app": {9100, 9113, 9121, 9187, 9443},
    "standby": {9100, 9187},
    "watch": {9090, 9093, 9100, 9115},
}


def responses(host, address: str, ports) -> dict:
    """{(port, scheme, path): (status, curl's exit code)} as this host gets them, without credentials."""
    requested = [(port, scheme, path) for port in ports for scheme in ("http", "https") for path in PATHS]
    words = " ".join(f"-o /dev/null {scheme}://{address}:{port}{path}" for port, scheme, path in requested)
    message = host.shell(
        "curl -sk -m 12 --parallel --parallel-immediate --parallel-max 100 "
        f"-w '%{{url}} %{{http_code}} %{{exitcode}}\\n' {words}",
        check=False,
    )
    found = {}
    for line in message.splitlines():
        url, status, code = line.split()
        scheme, rest = url.split("://")
        place, _, path = rest.partition("/")
        found[int(place.rsplit(":")[-1]), scheme, f"/{path}"] = (int(status), int(code))
    assert set(found) == set(requested), message
    return found


def listeners(host) -> set:
    """Ports of TCP that do not listen on the loopback alone."""
    lines = host.shell("ss -Htln").splitlines()
    places = [line.split()[3].rsplit(":", 1) for line in lines]
    return {int(port) for address, port in places if not address.strip("[]").startswith(("127.", "::1"))}


@pytest.mark.parametrize(
    ("name", "address"), [("app", "172.30.84.10"), ("standby", "172.30.84.30"), ("watch", "172.30.84.20")]
)
def test_every_listener_requires_a_password(hosts, watch, name, address):
    """Queried by the host with the most access: each port of each host."""
    ports = listeners(vars(hosts)[name])
    assert ports >= WATCHING[name]
    found = responses(watch, address, ports)
    assert {requested: one for requested, one in found.items() if one[0] == 200} == {}
    for (port, scheme, path), (status, code) in found.items():
        if port in WATCHING[name]:
            wanted = {401, 404} if port == 9443 else {401}
            assert scheme == "http" or status in wanted, (port, path, status, code)
        assert status or code in CLOSED | OTHERS, (port, scheme, path, code)


def test_monitoring_is_not_reachable_from_other_hosts(hosts, watch):
    """By the packet filter; and where it is open, by the password."""
    for host in (hosts.app, hosts.standby):
        found = responses(host, "172.30.84.20", WATCHING["watch"])
        assert set(found.values()) == {(0, 28)}, found
    opened = watch.shell("nft --echo --handle insert rule inet shiftmaster input tcp dport 9093 accept")
    handle = re.search(r"# handle (\d+)", opened)[1]
    try:
        found = responses(hosts.app, "172.30.84.20", [9093])
    finally:
        watch.shell(f"nft delete rule inet shiftmaster input handle {handle}")
    assert {one for (_port, scheme, _path), one in found.items() if scheme == "https"} == {(401, 0)}, found


# Changes that a run may make to monitoring: files, and services that were started again.
INSTALLED = (
    "find /etc/prometheus* /etc/systemd/system /etc/nginx -printf '%p %m %u %g %s %T@\\n' | sort; "
    "systemctl show --property=Id,ActiveEnterTimestamp 'prometheus*' mtail nginx"
)


def test_a_second_run_changes_nothing(hosts, watch, capsys):
    run = hosts.app.run("deploy.yml", "--tags", "monitoring", shiftmaster_version="2.0.0")
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]
    with capsys.disabled():
        print(f"\n  {run.seconds:.0f} s for the tag")
    run = hosts.app.run("deploy.yml", "--tags", "monitoring", "--check", shiftmaster_version="2.0.0")
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]


def test_check_mode_reports_changes_and_makes_none(hosts, watch):
    machines = (hosts.app, hosts.standby, watch)
    before = [machine.shell(INSTALLED) for machine in machines]
    run = hosts.app.run(
        "deploy.yml", "--tags", "monitoring", "--check", shiftmaster_version="2.0.0", prometheus_retention_days=70,
        alertmanager_language="ja", exporter_postgres_statement_timeout_milliseconds=4321,
    )  # fmt: skip
    assert run.code == 0, run.output[-4000:]
    for machine in machines:
        assert run.recap[machine.host]["changed"] >= 1, run.output[-4000:]
    assert [machine.shell(INSTALLED) for machine in machines] == before


# --- what exporters may do --------------------------------------------------------------------------------------------


def refused(host, statement: str) -> str:
    """The rights of the exporter's user in PostgreSQL, who logs in with the exporter's own file."""
    return host.shell(
        "PGPASSFILE=/etc/prometheus-exporters/postgres/pgpass setpriv --reuid=exporter-postgres "
        "--regid=exporter-postgres --clear-groups psql -XAtq -h /var/run/postgresql -U exporter -d shiftmaster "
        f'-c "{statement}" 2>&1',
        check=False,
    )


def test_the_exporter_of_postgresql_reads_metrics_and_nothing_else(hosts, watch):
    assert refused(hosts.app, "SELECT 1").strip() == "1"
    for statement in (
        f"SELECT count(*) FROM {service_faults.TABLE}",
        f"INSERT INTO {service_faults.TABLE} SELECT * FROM {service_faults.TABLE}",
        "SELECT * FROM pg_authid",
    ):
        assert "permission denied" in refused(hosts.app, statement), statement
    assert "permission denied" in refused(hosts.app, "CREATE TABLE public.fault ()")


def test_the_exporter_of_redis_reads_metrics_and_nothing_else(hosts, watch):
    password = watch.secret("redis")

    def request(words: str) -> str:
        return hosts.app.shell(
            f"read -r REDISCLI_AUTH; export REDISCLI_AUTH; redis-cli --no-auth-warning --user exporter {words} 2>&1",
            stdin=password + "\n", check=False,
        )  # fmt: skip

    assert "connected_clients" in request("INFO clients")
    for words in ("GET fault", "SET fault 1", "KEYS '*'", "FLUSHALL", "CONFIG SET maxmemory 1"):
        assert "NOPERM" in request(words), words


def test_exporters_are_locked_in(hosts, watch):
    """Data of the kernel about the running processes."""
    for host, count in ((hosts.app, 5), (hosts.standby, 2), (watch, 2)):
        units = host.shell(
            "systemctl list-units --plain --no-legend --state=active 'prometheus-*-exporter.service' mtail.service"
        ).splitlines()
        assert len(units) == count, units
        for line in units:
            unit = line.split()[0]
            pid = host.shell(f"systemctl show --value -p MainPID {unit}").strip()
            status = host.shell(f"cat /proc/{pid}/status")
            assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status, unit
            # The only one that may send pings.
            capabilities = "0000000000002000" if "blackbox" in unit else "0000000000000000"
            assert f"CapEff:\t{capabilities}" in status, (unit, status)
            assert "Uid:\t0" not in status, unit
            tried = host.shell(f"nsenter -t {pid} -m touch /etc/fault /usr/fault 2>&1", check=False)
            assert tried.count("Read-only") == 2, (unit, tried)


def test_units_are_sandboxed(hosts, watch):
    for host in (hosts.app, watch):
        units = host.shell(
            "systemctl list-units --plain --no-legend --all 'prometheus*.service' mtail.service nginx.service"
            " grafana-server.service 'shiftmaster-container-metrics.service' | cut -d' ' -f1"
        ).split()
        assert units
        report = host.shell(f"systemd-analyze security --no-pager {' '.join(units)}")
        exposures = {unit: float(level) for unit, level in re.findall(r"level for (\S+): ([\d.]+)", report)}
        assert set(exposures) == set(units) and {u: e for u, e in exposures.items() if e > 2.5} == {}


def test_mtail_is_read_by_the_web_server_alone(hosts):
    request = (
        "curl -sS -m 5 -o /dev/null -w '%{http_code}' --unix-socket /run/shiftmaster-mtail/mtail.sock http://x/metrics"
    )
    for user, status in {"www-data": "200", "nobody": "000", "shiftmaster": "000", "exporter-node": "000"}.items():
        assert hosts.app.shell(f"runuser -u {user} -- {request} 2>/dev/null", check=False) == status, user
    assert ":3903 " not in hosts.app.shell("ss -Htln")


def test_private_keys_are_read_by_the_processes_that_serve_them(hosts):
    readers = json.loads(
        hosts.app.shell("python3 -", 600, stdin=Path(private_keys.__file__).read_text(encoding="utf-8"))
    )
    serving = {"postgres", *(f"prometheus-{name}-exporter.service" for name in ("node", "postgres", "redis", "nginx"))}
    assert set(readers.pop("/etc/ssl/shiftmaster/host.key")) == serving
    assert {path: names for path, names in readers.items() if names} == {}

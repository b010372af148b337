"""The templates of role exporter, rendered by Ansible, and its program for mtail, run by mtail."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig
from rendered import trusted

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "exporter"
USERS = [{"name": "prometheus", "password": 'a"b$c\\d`e %f'}, {"name": "second", "password": "x"}]
KINDS = ["node", "postgres", "redis", "nginx", "blackbox", "mtail"]


def templar(kind, **variables):
    known = {"ansible_managed": "Ansible managed", "ansible_facts": {"distribution_major_version": "13"}}
    for part in ("defaults", "vars"):
        known |= yaml.safe_load((ROLE / part / "main.yml").read_text(encoding="utf-8"))
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader()
    loader = DataLoader()
    loader.set_basedir(str(ROLE))
    found = trusted(known)
    # A site's value is no template of ours.
    found |= {
        "__exporter_instance": {"name": kind},
        "exporter_users": USERS,
        "exporter_redis_password": USERS[0]["password"],
    }
    found |= {"exporter_postgres_password": "pg", "role_path": str(ROLE)} | variables
    return Templar(loader, variables=found)


def render(template, kind="node", **variables):
    text = (ROLE / "templates" / template).read_text(encoding="utf-8")
    # Backslashes of a file are literal, as for the lookup that reads it.
    return templar(kind, **variables).template(trust_as_template(text), escape_backslashes=False)


def value(name, kind, **variables):
    return templar(kind, **variables).template(trust_as_template("{{ %s }}" % name))


def settings(text):
    """{name: [values]} of a unit, with continued lines joined."""
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(r"(\w+)=(.*)$", line)
        if match:
            found.setdefault(match[1], []).append(match[2])
    return found


def words(text):
    """The last ExecStart as systemd starts it: quotes, then doubled specifiers and variables."""
    line = settings(text)["ExecStart"][-1]
    assert not re.search(r"[%$]", line.replace("%%", "").replace("$$", "")), "systemd would put something else there"
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


# --- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_debians_arguments_user_and_open_port_are_replaced(kind):
    text = render("drop-in.conf.j2", kind)
    unit = settings(text)
    assert unit["ExecStart"][0] == "" and len(unit["ExecStart"]) == 2
    assert unit["EnvironmentFile"][0] == "" and unit["Environment"][0] == ""
    assert unit["User"] == unit["Group"] == [f"exporter-{kind}"]
    assert not [word for word in words(text) if re.search(r"listen-address=(:|0\.0\.0\.0)", word)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_unit_has_the_sandbox_and_no_more_rights_than_it_needs(kind):
    unit = settings(render("drop-in.conf.j2", kind))
    for name in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectKernelTunables", "MemoryDenyWriteExecute"):
        assert unit[name] == ["true"], name
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ["CAP_NET_RAW" if kind == "blackbox" else ""]
    assert unit["SupplementaryGroups"] == ["adm" if kind == "mtail" else "ssl-cert"]
    assert "IPAddressAllow" not in unit and "IPAddressDeny" not in unit
    # The last filter that names the clock's calls decides.
    assert ("adjtimex" in unit["SystemCallFilter"][-1]) is (kind == "node")
    assert ("ProtectProc" in unit) is (kind != "node")


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_is_an_argument_or_in_the_unit(kind):
    text = render("drop-in.conf.j2", kind, exporter_postgres_password="pg-secret")
    assert "pg-secret" not in text
    assert USERS[0]["password"] not in text and "a\\" not in text


@pytest.mark.parametrize(
    ("addresses", "listens", "requested"),
    [
        (["127.0.0.1"], ["127.0.0.1:9100"], "https://127.0.0.1:9100/metrics"),
        (["192.0.2.1", "127.0.0.1"], ["192.0.2.1:9100", "127.0.0.1:9100"], "https://192.0.2.1:9100/metrics"),
        (["2001:db8::1"], ["[2001:db8::1]:9100"], "https://[2001:db8::1]:9100/metrics"),
        (["0.0.0.0"], ["0.0.0.0:9100"], "https://127.0.0.1:9100/metrics"),
        (["::"], ["[::]:9100"], "https://127.0.0.1:9100/metrics"),
        ([""], [":9100"], "https://127.0.0.1:9100/metrics"),
    ],
)
def test_addresses(addresses, listens, requested):
    text = render("drop-in.conf.j2", "node", exporter_listen_addresses=addresses)
    assert [word.split("=", 1)[1] for word in words(text) if "listen-address" in word] == listens
    assert value("__exporter_url", "node", exporter_listen_addresses=addresses) == requested


def test_an_instance_may_have_its_own_address_and_port():
    own = {"name": "postgres", "listen_addresses": ["192.0.2.7"], "port": 9999}
    assert "--web.listen-address=192.0.2.7:9999" in words(render("drop-in.conf.j2", __exporter_instance=own))


def test_the_exporter_of_redis_listens_on_the_first_address_by_tls():
    text = render("drop-in.conf.j2", "redis", exporter_listen_addresses=["192.0.2.1", "127.0.0.1"])
    arguments = dict(word.split("=", 1) for word in words(text)[1:])
    assert arguments["-web.listen-address"] == "192.0.2.1:9121"
    assert arguments["-tls-server-key-file"] == "/etc/ssl/shiftmaster/host.key"
    assert arguments["-config-command"] == "-", "CONFIG GET shows everything"
    assert settings(text)["EnvironmentFile"] == ["", "/etc/prometheus-exporters/redis/environment"]


def test_mtail_has_no_port_and_its_socket_is_for_the_web_server_alone():
    text = render(
        "drop-in.conf.j2", "mtail", exporter_listen_addresses=["192.0.2.1"], exporter_mtail_log_files=["/a", "/b"]
    )
    assert not [word for word in words(text) if re.match("--(address|port)=", word)] and "192.0.2.1" not in text
    unit = settings(text)
    assert unit["RuntimeDirectoryMode"] == ["0750"] and unit["PrivateNetwork"] == ["true"]
    assert unit["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert value("__exporter_url", "mtail") == "http://unix:/run/shiftmaster-mtail/mtail.sock:/metrics"
    assert [word for word in words(text) if "logs=" in word] == ["--logs=/a", "--logs=/b"]
    assert settings(text)["ExecCondition"] == [""], "Debian's asks for a variable that is gone"
    # The group of the directory is set for the web server after systemd has made it for the program.
    assert "Type=exec" in text.splitlines()


def test_secrets_are_for_the_one_that_needs_them():
    (pgpass,) = value("[__exporter_own_secrets.postgres[0]]", "postgres")
    assert (pgpass["owner"], pgpass["group"], pgpass["mode"]) == ("exporter-postgres", "exporter-postgres", "0600")
    environment = value("__exporter_own_secrets.redis[0].path", "redis")
    assert environment == "/etc/prometheus-exporters/redis/environment", "root's: systemd reads it"
    assert value("__exporter_own_secrets.redis[1].group", "redis") == "exporter-redis"
    assert value("__exporter_web_config.group", "node") == "exporter-node"


@pytest.mark.parametrize(
    ("password", "line"), [("simple", "simple"), ("a:b\\c", "a\\:b\\\\c"), ("pg p%a$s'\"w", "pg p%a$s'\"w")]
)
def test_a_password_of_postgresql_is_as_the_library_reads_it_back(password, line):
    text = value("__exporter_own_secrets.postgres[0].content", "postgres", exporter_postgres_password=password)
    assert text == f"*:*:*:*:{line}\n"
    assert re.sub(r"\\(.)", r"\1", text[len("*:*:*:*:") : -1]) == password


def test_the_environment_contains_what_systemd_reads_back():
    from ansible.module_utils.shiftmaster.host import envfile

    assert envfile.parse(render("environment.j2", "redis")) == {
        "REDIS_EXPORTER_BASIC_AUTH_USERNAME": "prometheus",
        "REDIS_EXPORTER_BASIC_AUTH_PASSWORD": USERS[0]["password"],
    }


def test_the_password_of_redis_is_found_by_its_address_with_the_user():
    content = value(
        "__exporter_own_secrets.redis[1].content",
        "redis",
        exporter_redis_url="rediss://cache1:6379",
    )
    found = content if isinstance(content, dict) else json.loads(content)
    assert found == {"rediss://exporter@cache1:6379": USERS[0]["password"]}


def test_how_postgresql_is_queried():
    environment = value("__exporter_environment", "postgres")
    assert environment == {
        "DATA_SOURCE_NAME": "postgresql:///postgres?host=/run/postgresql&port=5432&sslmode=disable"
        # The application can set another search_path for its database.
        + "&options=-csearch_path%3Dpg_catalog%2Cpublic"
        + "&user=exporter&connect_timeout=3&application_name=postgres_exporter&statement_timeout=3000&lock_timeout=500",
        "PGPASSFILE": "/etc/prometheus-exporters/postgres/pgpass",
    }


def test_collectors_that_debian_12_lacks_are_not_requested_there():
    for release, wanted in (("12", False), ("13", True)):
        facts = {"distribution_major_version": release}
        assert (
            "--collector.stat_statements" in value("__exporter_arguments", "postgres", ansible_facts=facts)
        ) is wanted
        assert value("__exporter_unsupported", "node", ansible_facts=facts) == ([] if wanted else ["redis", "nginx"])


# --- what they read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "seen"),
    [
        ("/", True),
        ("/home", True),
        ("/mnt/backup", True),
        ("/var/lib/docker", True),
        ("/var/lib/docker/overlay2/abc/merged", False),
        ("/var/lib/containers/storage/overlay", False),
        ("/run/user/0", False),
        ("/running", True),
        ("/etc/hosts", False),
        ("/etc", True),
        ("/dev/shm", False),
    ],
)
def test_mount_points(point, seen):
    pattern = next(word for word in value("__exporter_arguments", "node") if "mount-points" in word).split("=", 1)[1]
    assert bool(re.search(pattern, point)) is not seen


@pytest.mark.parametrize(
    ("kind", "seen"), [("ext4", True), ("overlay", True), ("xfs", True), ("tmpfs", False), ("cgroup2", False)]
)
def test_kinds_of_file_systems(kind, seen):
    pattern = next(word for word in value("__exporter_arguments", "node") if "fs-types" in word).split("=", 1)[1]
    assert bool(re.search(pattern, kind)) is not seen


def test_an_argument_reaches_the_program_as_it_is():
    odd = '--x=$a %h "q" \\d'
    assert words(render("drop-in.conf.j2", exporter_node_arguments=[odd]))[-1] == odd


def test_probes_follow_no_redirect_and_verify():
    modules = yaml.safe_load(render("blackbox.yml.j2", "blackbox", exporter_blackbox_ca_file="/ca.crt"))["modules"]
    assert set(modules) == {"http", "tcp", "tls", "certificate", "icmp"}
    assert modules["http"]["http"]["follow_redirects"] is False
    assert modules["http"]["http"]["tls_config"] == {"ca_file": "/ca.crt"}
    assert "valid_status_codes" not in modules["http"]["http"], "2xx is what it takes without them"
    assert modules["tls"]["tcp"]["tls"] is True and modules["tls"]["tcp"]["tls_config"] == {"ca_file": "/ca.crt"}
    more = {"icmp": {"prober": "icmp", "timeout": "1s"}, "login": {"prober": "http"}}
    modules = yaml.safe_load(render("blackbox.yml.j2", "blackbox", exporter_blackbox_modules=more))["modules"]
    assert modules["icmp"]["timeout"] == "1s" and "login" in modules and modules["http"]["http"]["tls_config"] == {}


def test_the_query_of_locks_names_its_series():
    queries = yaml.safe_load(render("queries.yml.j2", "postgres"))
    columns = [name for metric in queries["pg_lock"]["metrics"] for name in metric]
    assert columns == ["longest_wait_seconds"]
    assert "AS longest_wait_seconds" in queries["pg_lock"]["query"] and "waitstart" in queries["pg_lock"]["query"]


def test_on_debian_12_a_query_detects_a_standby():
    old = yaml.safe_load(render("queries.yml.j2", "postgres", ansible_facts={"distribution_major_version": "12"}))
    columns = [name for metric in old["pg_replication"]["metrics"] for name in metric]
    assert columns == ["is_replica", "lag_seconds"]
    assert all(f"AS {name}" in old["pg_replication"]["query"] for name in columns)
    # That of Debian 13 has a collector, whose series a query would double.
    assert set(yaml.safe_load(render("queries.yml.j2", "postgres"))) == {"pg_lock", "pg_checksum"}


def test_containers_are_read_while_the_node_exporter_runs_in_less_time_than_the_interval():
    given = {"exporter_instances": [{"name": "node"}, {"name": "container"}]}
    files = {one["path"].rpartition("/")[2]: one["content"] for one in value("__exporter_unit_files", "node", **given)}
    wanted = "shiftmaster-host-metrics.timer shiftmaster-container-metrics.timer"
    assert settings(files["shiftmaster.conf"])["Wants"] == [wanted]
    service = settings(files["shiftmaster-container-metrics.service"])
    assert words(files["shiftmaster-container-metrics.service"]) == [
        "/usr/local/sbin/shiftmaster-container-metrics", "/run/docker.sock",
        "/var/lib/prometheus/node-exporter/shiftmaster_containers.prom",
    ]  # fmt: skip
    assert service["TimeoutStartSec"] == ["15s"] and service["CapabilityBoundingSet"] == [""]
    assert settings(files["shiftmaster-container-metrics.timer"])["OnUnitActiveSec"] == ["15s"]


def test_metrics_of_the_host_are_written_while_the_node_exporter_runs():
    given = {
        "exporter_tls_listeners": [{"name": "redis", "port": 6379, "file": "/etc/ssl/shiftmaster/host.crt"}],
        "exporter_mail_servers": ["mail.example.jp:587", "[2001:db8::1]:25"],
    }
    files = {one["path"].rpartition("/")[2]: one["content"] for one in value("__exporter_unit_files", "node", **given)}
    assert set(files) == {"shiftmaster.conf", "shiftmaster-host-metrics.service", "shiftmaster-host-metrics.timer"}
    assert settings(files["shiftmaster.conf"])["Wants"] == ["shiftmaster-host-metrics.timer"]
    program, path, config = words(files["shiftmaster-host-metrics.service"])
    assert path == "/var/lib/prometheus/node-exporter/shiftmaster_host.prom"
    assert json.loads(config) == {
        "listeners": given["exporter_tls_listeners"],
        "mail_servers": given["exporter_mail_servers"],
    }
    assert settings(files["shiftmaster-host-metrics.service"])["CapabilityBoundingSet"] == [""]
    assert len(value("__exporter_unit_files", "redis")) == 1 and "Wants" not in settings(
        render("drop-in.conf.j2", "redis")
    )


# --- mtail ----------------------------------------------------------------------------------------------------------


LOG_FORMAT = re.search(
    r"log_format shiftmaster escape=json\s+(.*?);\n",
    (ROOT / "roles/nginx/templates/nginx.conf.j2").read_text(encoding="utf-8"),
    re.S,
)[1]


def access_log_line(**values):
    """A line as role nginx' own log_format makes it."""
    text = Templar(DataLoader(), variables={"nginx_log_query_string": False}).template(trust_as_template(LOG_FORMAT))
    known = {
        "time_iso8601": "2026-11-26T12:00:00+00:00",
        "msec": "1795694400.123",
        "lb_request_id": "0" * 32,
        "remote_addr": "192.0.2.9",
        "request_method": "GET",
        "scheme": "https",
        "host": "shift.test",
        "server_port": "443",
        "lb_log_path": "/shifts/",
        "server_protocol": "HTTP/2.0",
        "lb_log_status": "200",
        "bytes_sent": "1000",
        "request_length": "300",
        "request_time": "0.150",
        "upstream_addr": "unix:/s",
        "upstream_status": "200",
        "upstream_response_time": "0.149",
        "upstream_connect_time": "0.000",
        "ssl_protocol": "TLSv1.3",
        "ssl_cipher": "x",
        "http_user_agent": "Mozilla/5.0",
        "lb_log_referer": "",
    }
    for name, text_value in values.items():
        known[name] = text_value if name in ("request_time", "lb_log_status") else json.dumps(text_value)[1:-1]
    return re.sub(r"\$(\w+)", lambda match: known[match[1]], "".join(re.findall(r"'([^']*)'", text)))


ATTACK = '","method":"POST","scheme":"http","host":"x","port":"80","path":"/","protocol":"x","status":500,"bytes":1,'
LINES = [
    access_log_line(),
    access_log_line(server_port="80", lb_log_status="301", request_time="0.000", upstream_response_time=""),
    access_log_line(
        server_port="8000", request_method="POST", lb_log_status="502", upstream_response_time="0.500, 1.200"
    ),
    access_log_line(server_port="8443", lb_log_status="504", request_time="31.000", upstream_response_time="-"),
    access_log_line(
        server_port="9999", request_method="PROPFIND", lb_log_status="404", upstream_response_time="0.1 : 0.2"
    ),
    access_log_line(lb_log_path="/a\"b\\c'", http_user_agent=ATTACK, host=ATTACK, lb_log_referer=ATTACK),
    access_log_line(
        request_method="", lb_log_status="400", server_protocol="", lb_log_path="", upstream_response_time=""
    ),
    access_log_line(request_method="X" * 500, lb_log_status="405"),
    access_log_line(lb_log_path="/health/", lb_log_status="503"),
    access_log_line(server_port="9999", lb_log_path="/roster/health/", lb_log_status="502"),
    "no line of ours",
]


def test_the_lines_are_json():
    assert [json.loads(line)["status"] for line in LINES[:-1]] == [200, 301, 502, 504, 404, 200, 400, 405, 503, 502]


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """{series: value} as mtail itself counts the lines."""
    program = shutil.which("mtail")
    if not program:
        pytest.skip("not run: there is no mtail (Debian's package of that name)")
    directory = tmp_path_factory.mktemp("mtail")
    (directory / "progs").mkdir()
    (directory / "progs/nginx.mtail").write_text(render("nginx.mtail.j2", "mtail"), encoding="utf-8")
    (directory / "log").write_text("".join(line + "\n" for line in LINES), encoding="utf-8")
    done = subprocess.run(
        [
            program,
            "--one_shot",
            "--one_shot_format=prometheus",
            "--emit_prog_label=false",
            "--address=127.0.0.1",
            "--port=0",
            f"--progs={directory}/progs",
            f"--logs={directory}/log",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        if line and not line.startswith("#"):
            name, number = line.rsplit(" ", 1)
            found[name] = float(number)
    return found


def test_requests_are_counted_by_site_method_and_status(counted):
    requests = {name: number for name, number in counted.items() if name.startswith("nginx_http_requests_total")}
    assert requests == {
        f'nginx_http_requests_total{{method="{method}",site="{site}",status="{status}"}}': number
        for site, method, status, number in [
            ("edge", "GET", 200, 2), ("edge", "GET", 301, 1), ("local", "POST", 502, 1), ("local", "GET", 504, 1),
            ("other", "OTHER", 404, 1), ("edge", "OTHER", 400, 1), ("edge", "OTHER", 405, 1),
            ("probe", "GET", 503, 1), ("other", "GET", 502, 1),
        ]
    }  # fmt: skip
    assert counted["nginx_access_log_unknown_lines_total"] == 1


def test_bytes_and_durations(counted):
    assert counted['nginx_http_response_bytes_total{site="edge"}'] == 5000
    assert counted['nginx_http_request_duration_seconds_count{site="edge"}'] == 5
    assert counted['nginx_http_request_duration_seconds_sum{site="edge"}'] == pytest.approx(0.6)
    assert counted['nginx_http_request_duration_seconds_bucket{site="edge",le="0.1"}'] == 1
    assert counted['nginx_http_request_duration_seconds_bucket{site="edge",le="0.2"}'] == 5
    assert counted['nginx_http_request_duration_seconds_bucket{site="local",le="30"}'] == 1
    assert counted['nginx_http_request_duration_seconds_bucket{site="local",le="+Inf"}'] == 2


def test_the_last_responding_one_of_several_upstreams_counts(counted):
    assert counted['nginx_http_upstream_duration_seconds_count{site="local"}'] == 1
    assert counted['nginx_http_upstream_duration_seconds_sum{site="local"}'] == pytest.approx(1.2)
    # Two digits after the point or more: nginx writes three.
    assert counted['nginx_http_upstream_duration_seconds_count{site="edge"}'] == 3


# --- mtail: the application's logs ----------------------------------------------------------------------------------

EVENTS = """\
{"@timestamp":"2026-01-20T01:00:00.123Z","log":{"level":"ERROR","logger":"a"},"message":"[CRITICAL] in the text"}
{"time":"2026-01-20T01:00:00.123Z","level":"WARNING","logger":"shiftmaster_monitoring.slow"}
2026-01-20 10:00:00,123 [CRITICAL] gunicorn.error: WORKER TIMEOUT (pid:1)
2026-01-20 10:00:00,123 [ERROR] django.request: boom
Traceback (most recent call last):
  File "a.py", line 1, in f: [ERROR] quoted
ValueError: 2026-01-20 10:00:00,123 [ERROR] quoted
[2026-01-20 10:00:00,123: ERROR/ForkPoolWorker-1] Task a[b] raised unexpected
[2026-01-20 10:00:00 +0900] [12] [ERROR] Exception in worker process
ERROR 2025-07-14 09:00:00,123 log 1 2 as published
2026-01-20 10:00:00,123 [INFO] a: {"@timestamp":"x","log":{"level":"ERROR"
{"message": "of somebody else", "level": "ERROR"}
"""


def test_events_are_counted_by_level_and_each_program_reads_its_own_logs(tmp_path):
    program = shutil.which("mtail")
    if not program:
        pytest.skip("not run: there is no mtail (Debian's package of that name)")
    logs = tmp_path / "logs.d"
    for directory in (logs, tmp_path / "progs"):
        directory.mkdir()
    for name in ("nginx", "application"):
        text = render(f"{name}.mtail.j2", "mtail", exporter_mtail_application_log_dir=str(logs))
        (tmp_path / "progs" / f"{name}.mtail").write_text(text, encoding="utf-8")
    (logs / "error.log").write_text(EVENTS, encoding="utf-8")
    (tmp_path / "access").write_text(LINES[0] + "\n2026-01-20 10:00:00,123 [ERROR] a: not the application's\n")
    command = [program, "--one_shot", "--one_shot_format=prometheus", "--emit_prog_label=false", "--address=127.0.0.1"]
    command += ["--port=0", f"--progs={tmp_path}/progs", f"--logs={tmp_path}/access", f"--logs={logs}/*.log"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines() if line and not line.startswith("#"))
    assert {name: number for name, number in found.items() if "log_events" in name} == {
        'shiftmaster_log_events_total{level="CRITICAL"}': "1",
        'shiftmaster_log_events_total{level="ERROR"}': "5",
        'shiftmaster_log_events_total{level="INFO"}': "1",
        'shiftmaster_log_events_total{level="WARNING"}': "1",
    }
    # nginx' program saw its own two lines, of which one is none of its format.
    assert found["nginx_access_log_unknown_lines_total"] == "1"
    assert found['nginx_http_requests_total{method="GET",site="edge",status="200"}'] == "1"

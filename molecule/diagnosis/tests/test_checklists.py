"""The checklists: on a healthy host every line that a machine can check is good; each fault is seen on its line."""

from __future__ import annotations

import json

import pytest
from diagnosing import PSQL, broken, checklist, forget_the_journal, marks
from support import wait_for

PERIODS = ("morning", "evening", "weekly", "monthly")
# Lines that this host or machine cannot pass: no backups are set up here; how busy the machine is;
# what Debian has published since the image was made; whether there was time to read all files.
NOT_OF_THE_HOST = {"backups", "backup_last", "restore_test", "cpu", "security_updates", "vulnerabilities", "files"}
CERTIFICATE = "/etc/ssl/certs/shiftmaster.crt"


@pytest.fixture(autouse=True)
def healthy(operations):
    """Every test begins with a host with a live release."""
    assert operations.live_version(90), "the host does not serve"
    yield


@pytest.fixture(scope="module", autouse=True)
def quiet_night(operations):
    """The host was set up a day ago, by a run that made accounts; nothing was logged in the night."""
    forget_the_journal(operations)
    operations.shell(
        "touch -d '3 days ago' /etc/passwd /etc/group /etc/sudoers;"
        " for log in /var/log/shiftmaster/*.log /var/log/nginx/error.log /var/log/postgresql/*.log /var/log/redis/*.log;"
        " do : > $log; done; rm -f /var/log/shiftmaster/*.log[.-]* /var/log/nginx/error.log.*"
    )
    operations.shell(f"{PSQL} -d shiftmaster -c 'SELECT pg_stat_statements_reset()'")


@pytest.mark.parametrize("period", PERIODS)
def test_every_line_passes_on_a_healthy_host(operations, period):
    run, data, files = checklist(operations, period)
    assert run.code == 0 and set(files) == {"checklist.txt", "checklist.json", "checklist.html"}
    lines = {line["name"]: line for line in data["lines"] if line["name"] not in NOT_OF_THE_HOST}
    assert {
        name: line["mark"] for name, line in lines.items() if line["mark"] != "good" and "person" not in line
    } == {}, lines
    assert {line["name"] for line in data["lines"] if line["mark"] == "person"} <= {"forecast", "disaster", "keys"}
    # Nothing is ticked without evidence.
    assert all(one["evidence"]["en"] and one["evidence"]["ja"] for line in data["lines"] for one in line["hosts"])
    assert [line["name"] for line in data["lines"] if line["mark"] in ("good", "bad") and not line["hosts"]] == []


# Each: the lines that are not good then, what breaks, what fixes. In SQL, $$ is a quote.
TABLES = (
    "CREATE TABLE checked_one (id int PRIMARY KEY); INSERT INTO checked_one SELECT generate_series(1, 997);"
    " CREATE TABLE checked (id int, one int REFERENCES checked_one);"
    " INSERT INTO checked SELECT g, 1 + g % 997 FROM generate_series(1, 600000) g;"
    " CREATE INDEX checked_a ON checked (id); CREATE INDEX checked_b ON checked (id); ANALYZE checked"
)
USER = (
    "INSERT INTO auth_user (username, password, first_name, last_name, email, is_superuser, is_staff, is_active, date_joined)"
    " VALUES ($$unused$$, $$x$$, $$$$, $$$$, $$$$, false, false, true, now() - interval $$200 days$$)"
)
CHANGED = (
    "INSERT INTO django_admin_log (action_time, object_repr, action_flag, change_message, content_type_id, user_id)"
    " SELECT now(), $$checked$$, 2, $$$$, c.id, u.id FROM django_content_type c, auth_user u WHERE c.app_label = $$auth$$ LIMIT 1"
)
FAULTS = {
    "morning": (
        {"services", "site", "application", "disk", "logins", "certificate", "errors"},
        f"systemctl stop nginx; dd if=/dev/zero of=/mnt/small/data bs=1M count=34 2>/dev/null;"
        " for i in $(seq 25); do logger -t sshd 'Failed password for root from 192.0.2.7 port 1 ssh2'; done;"
        f" cp -p {CERTIFICATE} /root/crt; openssl req -x509 -key /etc/ssl/private/shiftmaster.key -subj /CN=localhost -days 9"
        f" -out {CERTIFICATE} 2>/dev/null;"
        " echo \"$(date '+%Y-%m-%d %H:%M:%S'),000 [ERROR] roster: checked\" | runuser -u shiftmaster -- tee -a /var/log/shiftmaster/error.log",
        f"cp -p /root/crt {CERTIFICATE}; rm -f /mnt/small/data; systemctl start nginx; sed -i /checked/d /var/log/shiftmaster/error.log",
    ),
    "evening": (
        {"backup_room", "logins", "rights_host", "rights_application"},
        "dd if=/dev/zero of=/mnt/small/data bs=1M count=34 2>/dev/null; touch /etc/group;"
        " for i in $(seq 25); do logger -t sshd 'Failed password for root from 192.0.2.7 port 1 ssh2'; done;"
        f" {PSQL} -d shiftmaster -c '{CHANGED}'",
        "rm -f /mnt/small/data; touch -d '3 days ago' /etc/group;"
        f" {PSQL} -d shiftmaster -c 'DELETE FROM django_admin_log WHERE object_repr = $$checked$$'",
    ),
    "weekly": (
        {"statements", "dead_rows"},
        f"{PSQL} -d shiftmaster -c 'CREATE TABLE dead (id int) WITH (autovacuum_enabled = off); INSERT INTO dead"
        " SELECT generate_series(1, 40000); ANALYZE dead; DELETE FROM dead WHERE id % 2 = 0' -c 'SELECT pg_sleep(1.5)'; sleep 2",
        f"{PSQL} -d shiftmaster -c 'DROP TABLE dead; SELECT pg_stat_statements_reset()'",
    ),
    "monthly": (
        {"indexes_whole", "indexes_used", "indexes_missing", "accounts"},
        f"{PSQL} -d shiftmaster -c '{TABLES}' -c '{USER}'",
        f"{PSQL} -d shiftmaster -c 'DROP TABLE checked, checked_one; DELETE FROM auth_user WHERE username = $$unused$$'",
    ),
}


@pytest.mark.parametrize("period", PERIODS)
def test_each_fault_is_on_its_line(operations, period):
    lines, injure, fix = FAULTS[period]
    with broken(operations, injure, fix):
        run, data, _files = checklist(operations, period, checklist_fail_on="bad")
    forget_the_journal(operations)
    found = marks(data)
    assert run.code == 2
    assert {name for name, mark in found.items() if mark == "bad"} - NOT_OF_THE_HOST == lines, data["lines"]
    assert "unknown" not in {mark for name, mark in found.items() if name not in NOT_OF_THE_HOST}, found
    by_name = {line["name"]: json.dumps(line["hosts"], ensure_ascii=False) for line in data["lines"]}
    for name, words in {"disk": "/mnt/small", "backup_room": "/mnt/small", "logins": "192.0.2.7", "errors": "checked",
                        "services": "nginx.service", "rights_host": "/etc/group", "dead_rows": "dead",
                        "indexes_whole": "checked_a", "indexes_used": "checked_a", "indexes_missing": "checked"}.items():  # fmt: skip
        if name in lines:
            assert words in by_name[name], (name, by_name[name])


def test_a_database_that_is_stopped_is_on_its_line(operations):
    with broken(operations, "systemctl stop postgresql", "systemctl start postgresql"):
        _run, data, _files = checklist(operations, "evening")
    found = marks(data)
    assert found["backup_source"] == "bad"
    # Without the database its accounts are unknown.
    assert found["rights_application"] == "unknown"
    wait_for(operations.live_version, 60, "the host")

"""It responds with any fault, changes nothing, shows no secret, and keeps its report in the configured place."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import tarfile
import time

import pytest
from diagnosing import (
    PSQL,
    background,
    checklist,
    diagnose,
    facts_of,
    forget_the_journal,
    redis_admin_password,
    second_inventory,
)
from support import APP

pytestmark = pytest.mark.usefixtures("healthy")
PARTS = {"disk", "units", "database", "redis", "http", "release", "memory", "cpu", "login", "celery"}


@pytest.fixture(scope="module")
def facts(operations):
    return facts_of(operations)


# --- it still responds ------------------------------------------------------------------------------------------------


def limit_memory(operations, megabytes: int) -> None:
    limit = f"{megabytes}m"
    subprocess.run(
        ["docker", "update", "--memory", limit, "--memory-swap", limit, operations.host],
        check=True,
        capture_output=True,
    )


def test_diagnosis_works_without_free_memory(operations):
    """The host may use 300 MiB more than it does, and a program takes all of that again and again."""
    script = (
        "import os, time\nopen('/proc/self/oom_score_adj', 'w').write('1000')\nkept = []\n"
        "while True:\n    kept.append(bytearray(1 << 20))\n    time.sleep(0.005)\n"
    )
    operations.shell("cat > /root/filler.py", stdin=script)
    used = operations.shell(
        "cat /sys/fs/cgroup/memory/memory.stat 2>/dev/null | awk '/^total_(rss|shmem) /{n += $2} END {print int(n / 1048576)}';"
        " awk '/^(anon|shmem) /{n += $2} END {print int(n / 1048576)}' /sys/fs/cgroup/memory.stat 2>/dev/null; true"
    )
    limit_memory(operations, max(int(word) for word in used.split()) + 300)
    try:
        with background(operations, "filler", "python3 /root/filler.py", Restart="always", StartLimitIntervalSec=0):
            time.sleep(5)
            seen = diagnose(operations)
    finally:
        limit_memory(operations, 1 << 20)
        forget_the_journal(operations)
    responded = {name for name, part in seen.of(operations.host)["parts"].items() if part["status"] == "ok"}
    assert PARTS <= responded, seen.output[-5000:]
    # The kernel's own word of whom it ended.
    assert seen.names[0] == "OomKill" and "filler.service" in seen.first["title"]["en"], seen.output[-4000:]


def test_diagnosis_works_without_free_disk_space(operations):
    """Where the run, its modules and Ansible itself would write there is no room; nothing is left either."""
    places = ["/tmp", "/var/tmp", "/root/.ansible"]
    fill = "; ".join(f"mkdir -p {place}; mount -t tmpfs -o size=64k,mode=1777 full {place}" for place in places)
    # PostgreSQL has its memory in /dev/shm, which is filled as it is.
    fill += "".join(f"; dd if=/dev/zero of={place}/filler bs=4k 2>/dev/null" for place in [*places, "/dev/shm"])
    find_changes = "find / /run /tmp /var/tmp /root/.ansible /dev/shm -xdev -newer /root/before -type f -not -path '/proc/*' -not -path '/var/log/*'"
    operations.shell(f"{fill}; sleep 2; touch /root/before; true")
    try:
        seen = diagnose(operations)
        left = operations.shell(
            f"{find_changes} -not -path '/var/lib/postgresql/*' -not -path '/var/lib/redis/*' | sort -u"
        ).split()
    finally:
        operations.shell("rm -f /dev/shm/filler; " + "; ".join(f"umount {place}" for place in reversed(places)))
    responded = {name for name, part in seen.of(operations.host)["parts"].items() if part["status"] == "ok"}
    assert PARTS <= responded, seen.output[-5000:]
    assert [
        path
        for path in left
        if not path.startswith(("/run/systemd", "/run/log", "/run/nginx", "/run/shiftmaster", "/var/lib/shiftmaster"))
    ] == []
    # They are full, and that is reported.
    assert {finding["rule"] for finding in seen.report["findings"]} <= {"DiskFull"}, seen.output[-4000:]


def test_a_password_prompt_of_sudo_does_not_stop_the_diagnosis_of_other_hosts(operations):
    directory = second_inventory(
        "locked", "locked", ansible_connection="community.docker.docker", ansible_host=operations.host,
        ansible_user="www-data", private_address="192.0.2.9",
    )  # fmt: skip
    seen = diagnose(operations, "--inventory", directory)
    assert seen.code == 2, seen.output[-3000:]
    assert (seen.names, seen.first["host"]) == (["HostNotDiagnosed"], "locked"), seen.output[-4000:]
    assert "sudo" in seen.first["cause"]["en"] and "--ask-become-pass" in seen.first["fix"][0]
    assert {host["host"] for host in seen.report["hosts"] if host["parts"]} == {operations.host}


# --- it changes nothing ----------------------------------------------------------------------------------------------


def state(operations) -> dict:
    """State that a read-only run must not change, next to files, units and rules of the firewall."""
    units = "shiftmaster.service 'shiftmaster-web@*' 'shiftmaster-worker@*' nginx.service redis-server.service 'postgresql@*'"
    properties = "Id,NRestarts,MainPID,ActiveEnterTimestampMonotonic"
    # Rows of sessions and of results of tasks, which expire.
    redis = (
        "redis-cli --user admin --no-auth-warning EVAL \"local found = {} for _, key in ipairs(redis.call('KEYS', '*')) do"
        " if redis.call('TTL', key) < 0 then table.insert(found, key .. ' ' .. redis.call('OBJECT', 'ENCODING', key)) end end"
        ' table.sort(found) return found" 0; redis-cli --user admin --no-auth-warning CONFIG GET "*" | grep -v -e maxmemory-clients'
    )
    return {
        "files": operations.fingerprint(),
        "units": operations.shell(f"systemctl show --property={properties} {units}"),
        "logs": operations.shell("find /var/log/shiftmaster -printf '%P %m %u %g %y\\n' | sort"),
        "redis": operations.shell(f"export REDISCLI_AUTH={shlex.quote(redis_admin_password())}; {redis}"),
    }


def test_it_changes_nothing(operations):
    """Files, units and their starts, rules of the firewall, Redis, and the database's statistics of use are as before."""
    use = (
        f'{PSQL} -d shiftmaster -c "SELECT sum(seq_scan), sum(idx_scan), sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables'
        " WHERE relname NOT LIKE 'django_session%'\""
    )
    operations.shell("systemctl stop 'shiftmaster-beat@*'")
    try:
        # PostgreSQL reports the counts of sessions up to ten seconds later.
        time.sleep(15)
        before = state(operations)
        # Reads of the playbook's own requests to the application count as use: the database is queried by itself.
        counted = operations.shell(use)
        diagnose(operations, area="db")
        assert operations.shell(use) == counted
        for area in ("all", "app", "cpu", "memory", "disk", "network"):
            diagnose(operations, area=area)
        for period in ("morning", "evening", "weekly", "monthly"):
            checklist(operations, period)
        after = state(operations)
        changed = {name: set(before[name].splitlines()) ^ set(after[name].splitlines()) for name in before}
        assert not any(changed.values()), changed
    finally:
        operations.shell(f"systemctl start shiftmaster-beat@$(basename $(readlink {APP}/active))")


# --- secrets ---------------------------------------------------------------------------------------------------------


def secrets_of(operations, facts) -> list:
    """The values of the environment that are secrets, and Redis' administrator's, whom no environment knows."""
    found = []
    for line in operations.shell(f"cat {facts['release']}/env").splitlines():
        name, _equals, value = line.partition("=")
        value = value.strip('"').replace('\\"', '"').replace("\\\\", "\\").replace("\\$", "$").replace("\\`", "`")
        if name in ("DJANGO_SECRET_KEY", "DB_PASSWORD"):
            found.append(value)
        if name == "CACHE_URL":
            found.append(value.split("@")[0].rsplit(":", 1)[1])
    assert len(found) == 3
    found.append(redis_admin_password())
    assert all(len(value) > 8 for value in found)
    return found


def seed(operations, secrets: list) -> None:
    """Write them where they come to in practice: into logs, the journal, and a statement that PostgreSQL refuses."""
    at = "$(date '+%Y-%m-%d %H:%M:%S'),000"
    for number, value in enumerate(secrets):
        quoted = shlex.quote(value)
        # A value of the host's environment is hidden anywhere; another one after a name that marks it.
        bare = quoted if number < 3 else f"password={quoted}"
        statement = f"ALTER ROLE nobody_{number} PASSWORD '{value.replace(chr(39), 2 * chr(39))}'"
        access = json.dumps(
            {"time": time.time(), "status": "500", "request_time": "3.1", "uri": f"/login?password={value}"}
        )
        operations.shell(
            f'(echo "{at} [ERROR] seed: failed with "{bare}; echo "{at} [ERROR] seed: AUTH admin password="{quoted})'
            # As the application writes: a log that is not there yet is its own.
            " | runuser -u shiftmaster -- tee -a /var/log/shiftmaster/error.log /var/log/shiftmaster/celery.log >/dev/null;"
            f" echo {shlex.quote(access)} >> /var/log/nginx/shiftmaster_access.log;"
            f" {PSQL} -c {shlex.quote(statement)} 2>/dev/null;"
            f" logger -p user.err -t shiftmaster-seed -- 'cannot log in with password='{quoted}; true"
        )


def test_no_secret_is_in_any_report(operations, facts):
    """In the reports of all playbooks that make one, in each format, and in the bundle for a supporter."""
    secrets = secrets_of(operations, facts)
    seed(operations, secrets)
    arguments = " ".join(f"--password={shlex.quote(value)}" for value in secrets)
    # A unit that prints one and ends, and a process that has all of them among its arguments and is busy.
    ends = f"sh -c {shlex.quote(f'echo cannot connect to redis://admin:{secrets[3]}@cache:6379; exit 3')}"
    with (
        background(operations, "seed-ends", ends),
        background(operations, "seed-busy", f"python3 -c 'while True: pass' {arguments}"),
    ):
        time.sleep(2)
        seen = diagnose(operations, bundle=True)
        texts = {
            "terminal": seen.output,
            **{name: content.decode() for name, content in seen.files.items() if "bundle" not in name},
        }
        with tarfile.open(fileobj=io.BytesIO(seen.files["diagnosis-bundle.tar.gz"])) as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
            texts.update({f"bundle: {one.name}": archive.extractfile(one).read().decode() for one in members})
        assert len(members) == 4
        for period in ("morning", "weekly"):
            run, _data, files = checklist(operations, period)
            texts.update(
                {period: run.output, **{f"{period} {name}": content.decode() for name, content in files.items()}}
            )
        for style in ("text", "json"):
            texts[f"health {style}"] = operations.run("playbooks/health.yml", health_format=style).output
    try:
        assert {name: [number for number, value in enumerate(secrets) if value in text or json.dumps(value)[1:-1] in text]
                for name, text in texts.items()} == {name: [] for name in texts}  # fmt: skip
        # They were read: the text next to them is there.
        reported = texts["diagnosis.json"]
        assert (
            "seed: failed with ***" in reported
            and "seed-busy.service" in reported
            and "cannot connect to redis://admin:***@cache" in reported
        )
        assert '"errors"' in texts["morning checklist.json"]
    finally:
        operations.shell(
            "sed -i /seed:/d /var/log/shiftmaster/error.log /var/log/shiftmaster/celery.log;"
            " sed -i '\\#/login?password#d' /var/log/nginx/shiftmaster_access.log;"
            " for log in /var/log/postgresql/*.log; do sed -i /nobody_/d $log; done"
        )
        forget_the_journal(operations)


# --- where reports are kept ------------------------------------------------------------------------------------------


def test_reports_are_kept_on_a_host_for_its_administrators_alone(operations):
    kept = "/var/log/shiftmaster"
    operations.shell(f"rm -rf {kept}/diagnosis {kept}/checklists")
    try:
        worst = diagnose(operations, report_host=operations.host).report["worst"]
        checklist(operations, "evening", report_host=operations.host)
        found = operations.shell(
            f"cd {kept}; stat -c '%a %U %n' diagnosis checklists; find diagnosis checklists -type f -printf '%m %u %P\\n' | sort"
        )
        day = operations.shell("date +%Y").strip()
        lines = found.splitlines()
        assert lines[:2] == ["700 root diagnosis", "700 root checklists"]
        assert len(lines) == 5 and all(line.startswith("600 root ") for line in lines[2:]), found
        assert [name for line in lines[2:] if (name := line.split()[2]).startswith((day, "evening-"))] == [
            line.split()[2] for line in lines[2:]
        ]
        report = json.loads(operations.shell(f"cat {kept}/diagnosis/*.json"))
        assert report["worst"] == worst and report["hosts"][0]["host"] == operations.host
        assert json.loads(operations.shell(f"cat {kept}/checklists/*.json"))["period"] == "evening"
        assert "<html" in operations.shell(f"cat {kept}/checklists/*.html")
    finally:
        operations.shell(f"rm -rf {kept}/diagnosis {kept}/checklists")


def test_a_host_that_does_not_exist_stores_no_report(operations):
    run = operations.run("playbooks/diagnose.yml", report_host="elsewhere")
    assert run.code == 2 and run.prints("Nothing was done", "There is no host elsewhere")


def test_rows_are_known_where_nothing_has_been_counted_yet(operations):
    """As after a restore or a crash."""
    operations.shell(f"{PSQL} -d shiftmaster -c ANALYZE -c 'SELECT pg_stat_reset()'")
    (host,) = diagnose(operations, area="db").report["hosts"]
    rows = {table["table"]: table["rows"] for table in host["parts"]["database"]["tables"]}
    assert rows["auth_permission"] > 10

"""The database's host dies under eight writers: which of their committed rows are restored?"""

from __future__ import annotations

import json
import statistics
import subprocess
import time

import pytest
from support import SCENARIO_HOME, wait_for

WRITERS = 8
SECONDS = 8
WAYS = {
    # way: (options of a deploy, whether the WAL is received, the most seconds that may be lost, how often it is tried)
    "synchronous": ({"backup_wal_synchronous": True}, True, 0.0, 5),
    "archive alone": ({"backup_wal_receive": False}, False, 60.0, 2),
    # The last one, since it is what the inventory has.
    "asynchronous": ({}, True, 1.0, 3),
}


@pytest.fixture(scope="module")
def saved(hosts):
    hosts.app.sql("CREATE TABLE told (id bigserial PRIMARY KEY, writer int, at timestamptz DEFAULT clock_timestamp())")
    hosts.backup_server.backup(only="database", kind="full")
    yield hosts
    hosts.app.sql("DROP TABLE told")


def write_until_killed(hosts, way: str) -> dict:
    """Eight writers without a pause; each number that comes out was acknowledged. Returns {id: when}."""
    files, processes = [], []
    for writer in range(WRITERS):
        path = SCENARIO_HOME / f"told-{writer}"
        files.append(path)
        line = f"INSERT INTO told (writer) VALUES ({writer}) RETURNING id, extract(epoch FROM at);"
        options = "-c synchronous_commit=on" if way == "synchronous" else ""
        psql = "runuser -w PGOPTIONS -u postgres -- stdbuf -oL psql -XqAt -d shiftmaster"
        command = f'yes "{line}" | PGOPTIONS="{options}" {psql}'
        processes.append(
            subprocess.Popen(
                ["docker", "exec", "--interactive", hosts.app.host, "sh", "-c", command],
                stdout=path.open("w"), stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
            )
        )  # fmt: skip
    time.sleep(SECONDS)
    subprocess.run(["docker", "kill", hosts.app.host], check=True, capture_output=True)
    for process in processes:
        process.wait(60)
    acknowledged = {}
    for path in files:
        # The last line may be torn.
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n") and line.count("|") == 1:
                number, timestamp = line.split("|")
                acknowledged[int(number)] = float(timestamp)
        path.unlink()
    assert len(acknowledged) > 100 * WRITERS, "they did not write"
    return acknowledged


def what_came_back(hosts) -> set:
    """The rows of the table in a restore of the latest, next to the database that is gone."""
    request = {"id": f"loss{time.time_ns()}", "target": "latest", "parts": [], "table": "told", "paths": []}

    def step(name: str, given: dict) -> dict:
        done = hosts.backup_server.shell(
            f"shiftmaster-backup restore {name}", stdin=json.dumps(given), timeout=900, check=False
        )
        response = json.loads([line for line in done.splitlines() if line.startswith("{")][-1])
        assert "failed" not in response, response
        return response

    found = step("table", {**request, **step("plan", request)})
    text = hosts.backup_server.shell(f"runuser -u postgres -- pg_restore --data-only -f - {found['file']}", timeout=300)
    hosts.backup_server.shell("rm -r /var/backups/shiftmaster/tables")
    return {int(line.split("\t")[0]) for line in text.splitlines() if line.count("\t") == 2}


@pytest.mark.parametrize("way", WAYS)
def test_acknowledged_data_is_restored(hosts, saved, way, capsys):
    options, receives, most, runs = WAYS[way]
    run = hosts.app.run("deploy.yml", "--tags", "database,backup", timeout=1800, **options)
    assert run.code == 0, run.output[-4000:]
    # Settings that the application's own logins have by themselves, and these writers by PGOPTIONS.
    waits = hosts.app.sql(
        "SELECT count(*) > 0 FROM pg_db_role_setting JOIN pg_roles ON pg_roles.oid = setrole "
        "WHERE rolname ~ '^shiftmaster' AND 'synchronous_commit=on' = ANY (setconfig)"
    )
    assert waits == ("t" if way == "synchronous" else "f")
    assert (hosts.app.sql("SHOW synchronous_standby_names") != "") == (way == "synchronous")
    lost_rows, lost_seconds = [], []
    for _number in range(runs):
        if receives:
            state = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'shiftmaster-backup-wal'"
            wanted = "sync" if way == "synchronous" else "async"
            wait_for(lambda state=state, wanted=wanted: hosts.app.sql(state) == wanted, 120, "the receiver")
        acknowledged = write_until_killed(hosts, way)
        back = what_came_back(hosts)
        lost = [timestamp for number, timestamp in acknowledged.items() if number not in back]
        lost_rows.append(len(lost))
        lost_seconds.append(max(acknowledged.values()) - min(lost) if lost else 0.0)
        subprocess.run(["docker", "start", hosts.app.host], check=True, capture_output=True)
        wait_for(lambda: hosts.app.shell("pg_isready -q && echo yes", check=False).strip() == "yes", 120, "PostgreSQL")
    with capsys.disabled():
        print(f"\n  {way}: of the acknowledged rows {lost_rows} were lost, {[round(s, 2) for s in lost_seconds]} s, "
              f"median {statistics.median(lost_seconds):.2f} s")  # fmt: skip
    assert max(lost_seconds) <= most
    if most == 0:
        assert lost_rows == [0] * runs

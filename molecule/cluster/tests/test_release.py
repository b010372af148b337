"""Deploys and rollbacks of the entire installation, and what becomes of it when one of its hosts fails or is lost."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from support import BROWSER, ROOT, SCENARIO_HOME, Operations, all_ran_once, enqueue, kill_run, load, uninstall, wait_for

SERVERS = "/etc/nginx/shiftmaster-servers.conf"
LOG = SCENARIO_HOME / "cluster.log"
FAST = {"shiftmaster_watch_seconds": 3}
OTHER = {"2.0.0": "2.1.0", "2.1.0": "2.0.0"}
TRAFFIC = ("--clients", "16", "--think-seconds", "0.5")
# Runs that a test has started; what it has not waited for must not meet the next one.
STARTED = []


def served(topology) -> list:
    return [host.live_version(5) for host in topology.apps]


def out_of_the_lb(topology) -> list:
    return re.findall(r"^server (\S+):8443 .* down;", topology.edge.shell(f"cat {SERVERS}"), re.M)


def ssh(host: Operations, on: bool) -> None:
    """Let the controller reach a host, or not; what it has open ends at once."""
    if on:
        host.shell("systemctl start ssh.socket ssh.service 2>/dev/null || systemctl start ssh")
    else:
        host.shell(
            "systemctl stop ssh.socket ssh.service; pkill -KILL -x sshd-session; pkill -KILL -x sshd; true", check=False
        )


def transitions(topology) -> list:
    return [host.state()["transition"] for host in topology.apps]


def back_to_2_0_0(topology) -> None:
    # The quickest that does it: the second is for what a failed test of a contract migration leaves.
    for way in ({"to": "2.0.0"}, {"to": "2.0.0", "schema": "reverse"}, None):
        run = topology.app1.rollback(**way) if way else topology.app1.deploy("2.0.0", **FAST)
        if run.code == 0:
            break
    assert run.code == 0, run.output[-6000:]
    assert served(topology) == ["2.0.0", "2.0.0"]


@pytest.fixture(autouse=True)
def live(topology) -> str:
    """Each test begins with one version on every host, however the last one ended; most deploy the other one."""
    if STARTED and STARTED[-1].poll() is None:
        kill_run(topology.app1, STARTED[-1], *topology.all)
    for host in topology.all:
        ssh(host, True)
        host.release_hold()
    found = served(topology)
    if found[0] not in OTHER or found[0] != found[1] or out_of_the_lb(topology):
        back_to_2_0_0(topology)
    return served(topology)[0]


@pytest.fixture
def at_2_0_0(topology, live):
    """For tests of what only one of the two versions has."""
    if live != "2.0.0":
        back_to_2_0_0(topology)


def start(topology, version: str, **extra) -> subprocess.Popen:
    STARTED.append(
        topology.app1.start("deploy.yml", LOG, "--tags", "release", shiftmaster_version=version, **FAST, **extra)
    )
    return STARTED[-1]


def test_deploy_rollback_deploy_under_load(topology, at_2_0_0, capsys):
    """No request fails, no write is lost; every task runs once, also those that only one of the two versions knows."""
    with load(topology.edge, *TRAFFIC, seconds=900) as traffic:
        stamp = int(time.time())
        for name, step, version in (
            ("deploy", lambda: topology.app1.deploy("2.1.0", **FAST), "2.1.0"),
            ("rollback", topology.app1.rollback, "2.0.0"),
            ("again", lambda: topology.app1.deploy("2.1.0", **FAST), "2.1.0"),
        ):
            enqueue(topology.app1, f"{name}{stamp}", 0.5, 20, "record_run")
            if name == "rollback":  # Only 2.1.0 knows it: on 2.0.0 it waits aside until 2.1.0 is there again.
                enqueue(topology.app2, f"new{stamp}", 1, 10, "summarize_month")
            with traffic.window(name):
                run = step()
            assert run.code == 0, run.output[-6000:]
            assert served(topology) == [version] * 2
        all_ran_once(topology.app1, f"again{stamp}", 20)
    traffic.assert_flawless()
    for name, count in (("deploy", 20), ("rollback", 20), ("again", 20), ("new", 10)):
        all_ran_once(topology.app1, f"{name}{stamp}", count)
    with capsys.disabled():
        print(f"\n  {traffic.summary['requests']} requests, {traffic.summary['failed']} failed")


def test_a_second_run_changes_nothing(topology, live):
    run = topology.app1.deploy(live)
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]


def test_one_host_fails_at_its_gate(topology, live):
    """Nothing has moved anywhere; what the other one had started ends."""
    broken = {
        "CACHE_URL": "{{ 'redis://127.0.0.1:1/0' if inventory_hostname == 'cluster-app2' else "
        "shiftmaster_secret_environment.CACHE_URL }}"
    }
    with load(topology.edge, *TRAFFIC, seconds=900) as traffic:
        run = topology.app1.deploy(
            OTHER[live], shiftmaster_extra_secret_environment=broken, shiftmaster_health_attempts=2,
            shiftmaster_health_delay_seconds=1, **FAST,
        )  # fmt: skip
    assert run.code == 2, run.output[-4000:]
    assert run.prints("cluster-app2 failed, see its message", "failed 2 times", f"Version {live} is still live."), (
        run.output[-5000:]
    )
    assert served(topology) == [live, live] and transitions(topology) == [None, None]
    traffic.assert_flawless()
    run = topology.app1.deploy(OTHER[live], **FAST)
    assert run.code == 0, run.output[-4000:]
    assert served(topology) == [OTHER[live]] * 2


def test_one_host_fails_after_its_switch(topology, live):
    """The host that had switched before goes back, too."""
    hook = {"name": "fails", "phase": "after_cutover", "command": "test $(uname -n) != cluster-app2"}
    with load(topology.edge, *TRAFFIC, seconds=900) as traffic:
        run = topology.app1.deploy(OTHER[live], shiftmaster_hooks=[hook], **FAST)
    assert run.code == 2, run.output[-4000:]
    assert run.prints("hook fails", f"Version {live} is still live."), run.output[-5000:]
    assert served(topology) == [live, live] and transitions(topology) == [None, None]
    events = [
        json.loads(line)["event"]
        for line in topology.app1.shell("tail -n 6 /var/www/shiftmaster/shared/state/audit.jsonl").splitlines()
    ]
    assert "switched" in events and "reverted" in events, "cluster-app1 had not switched, so this verifies nothing"
    traffic.assert_flawless()
    run = topology.app1.deploy(OTHER[live], **FAST)
    assert run.code == 0, run.output[-4000:]


def test_one_host_fails_during_cutover(topology, live):
    """It is drained on the load balancer and named; one serves the old version; the next run deploys to both."""
    with load(topology.edge, *TRAFFIC, BROWSER, seconds=900) as traffic:
        topology.app2.hold("switched")
        process = start(topology, OTHER[live])
        topology.app2.wait_at("switched", process, LOG)
        ssh(topology.app2, False)
        assert process.wait(900) != 0
        topology.app2.release_hold()
        message = " ".join(LOG.read_text().split())
        assert "cluster-app2 could not be reached" in message and "no web server leads there" in message, message[
            -5000:
        ]
        assert topology.app1.live_version(5) == live and topology.app1.state()["transition"] is None
        assert out_of_the_lb(topology) == ["172.30.77.12"]
        time.sleep(5)
        ssh(topology.app2, True)
        run = topology.app1.deploy(OTHER[live], **FAST)
        assert run.code == 0, run.output[-6000:]
    assert served(topology) == [OTHER[live]] * 2 and out_of_the_lb(topology) == []
    traffic.assert_flawless()


def test_one_host_fails_while_all_stop_the_old_version(topology, live):
    """All had switched and one has finished: that one does not go back."""
    other = OTHER[live]
    with load(topology.edge, *TRAFFIC, BROWSER, seconds=900) as traffic:
        topology.app2.hold("finish")
        process = start(topology, other)
        topology.app2.wait_at("finish", process, LOG)
        wait_for(lambda: topology.app1.state()["transition"] is None, 120, "the end of cluster-app1's cutover")
        ssh(topology.app2, False)
        assert process.wait(900) != 0
        topology.app2.release_hold()
        message = " ".join(LOG.read_text().split())
        sentences = (f"Version {other} is live.", "cluster-app2 could not be reached")
        assert all(sentence in message for sentence in sentences), message[-5000:]
        assert topology.app1.live_version(5) == other and out_of_the_lb(topology) == ["172.30.77.12"]
        ssh(topology.app2, True)
        run = topology.app1.deploy(other, **FAST)
        assert run.code == 0, run.output[-6000:]
    assert (
        served(topology) == [other, other] and out_of_the_lb(topology) == [] and transitions(topology) == [None, None]
    )
    traffic.assert_flawless()


def test_the_load_balancer_is_unreachable(topology, live):
    ssh(topology.edge, False)
    run = topology.app1.deploy(OTHER[live], **FAST)
    assert run.code != 0 and run.prints("cluster-edge"), run.output[-3000:]
    assert served(topology) == [live, live]


def test_the_load_balancer_fails_before_the_cutover(topology, live):
    topology.app1.hold("built")
    process = start(topology, OTHER[live], shiftmaster_extra_environment={"X": str(time.time())})
    topology.app1.wait_at("built", process, LOG)
    ssh(topology.edge, False)
    topology.app1.release_hold()
    assert process.wait(900) != 0
    assert "web server cluster-edge: " in " ".join(LOG.read_text().split()), LOG.read_text()[-4000:]
    assert served(topology) == [live, live]
    ssh(topology.edge, True)
    run = topology.app1.deploy(OTHER[live], **FAST)
    assert run.code == 0, run.output[-4000:]


def test_the_database_restarts_during_migrations(topology, at_2_0_0):
    """Half of a migration that is no transaction stays in the database; the next run finishes it."""
    topology.app1.hold("migrate")
    process = start(topology, "2.1.1")
    topology.app1.wait_at("migrate", process, LOG)
    topology.db.shell("systemctl restart postgresql")
    topology.app1.release_hold()
    assert process.wait(900) != 0, LOG.read_text()[-4000:]
    assert served(topology) == ["2.0.0", "2.0.0"] and transitions(topology) == [None, None]
    run = topology.app1.deploy("2.1.1", **FAST)
    assert run.code == 0, run.output[-6000:]
    assert served(topology) == ["2.1.1", "2.1.1"]
    assert topology.app1.rollback(to="2.0.0", schema="reverse").code == 0


def test_contract_migrations_stop_background_work_on_every_host(topology, at_2_0_0):
    """The page is up at the load balancer meanwhile, and no old worker runs on any host."""
    topology.app1.hold("migrated")
    process = start(topology, "2.2.0", shiftmaster_allow_contract=True)
    topology.app1.wait_at("migrated", process, LOG)
    page = topology.edge.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/")
    workers = [
        host.shell(
            "systemctl list-units --plain --no-legend --state=active 'shiftmaster-worker@*' 'shiftmaster-beat@*'"
        )
        for host in topology.apps
    ]
    topology.app1.release_hold()
    assert process.wait(900) == 0, LOG.read_text()[-4000:]
    assert (page, workers) == ("503", ["", ""])
    assert served(topology) == ["2.2.0", "2.2.0"]
    assert topology.edge.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/") == "200"
    assert topology.app1.rollback(to="2.0.0", schema="reverse").code == 0


@pytest.mark.parametrize("host, point", [("app2", "switch"), ("app1", "live")])
def test_killed_between_two_hosts(topology, live, host, point):
    """The next run brings one version everywhere: back where one had not switched, on where all had."""
    with load(topology.edge, *TRAFFIC, seconds=900) as traffic:
        place = getattr(topology, host)
        place.hold(point)
        process = start(topology, OTHER[live])
        waiting = place.wait_at(point, process, LOG)
        kill_run(place, process, *topology.all)
        assert place.shell(f"test -e /proc/{waiting} && echo lives || true") == ""
        place.release_hold()
        assert {host.live_version(5) for host in topology.apps} <= set(OTHER)
        run = topology.app1.deploy(OTHER[live], **FAST)
        assert run.code == 0, run.output[-6000:]
        assert served(topology) == [OTHER[live]] * 2 and transitions(topology) == [None, None]
    traffic.assert_flawless()


def test_hosts_with_different_live_versions_are_not_rolled_back(topology, live):
    run = topology.app1.deploy(OTHER[live], "--limit", "cluster-app1,cluster-edge,cluster-db,cluster-cache", **FAST)
    assert run.code == 0, run.output[-5000:]
    assert served(topology) == [OTHER[live], live]
    assert out_of_the_lb(topology) == ["172.30.77.12"], "a host that the run left out must not serve users"
    back = topology.app1.rollback()
    assert back.code == 2 and back.prints("do not serve the same version", "-e to="), back.output[-4000:]
    run = topology.app1.deploy(OTHER[live], **FAST)
    assert run.code == 0, run.output[-5000:]
    assert served(topology) == [OTHER[live]] * 2 and out_of_the_lb(topology) == []


def test_a_run_without_the_first_application_host(topology, live):
    """The next one does what is done once; a run of the first one excludes it."""
    limit = ("--limit", "cluster-app2,cluster-edge,cluster-db,cluster-cache")
    lock = "/var/www/shiftmaster/shared/state/lock.json"
    holder = {"owner": "nurse@elsewhere", "operation": "deploy", "run_id": "r1", "since": 0, "controller": {}}
    topology.app1.shell(f"cat > {lock}", stdin=json.dumps({**holder, "expires": time.time() + 900, "ttl_seconds": 900}))
    try:
        run = topology.app1.deploy(OTHER[live], *limit, **FAST)
        assert run.code == 2 and run.prints("nurse@elsewhere holds the lock"), run.output[-3000:]
    finally:
        topology.app1.shell(f"rm {lock}")
    run = topology.app1.deploy(OTHER[live], *limit, **FAST)
    assert run.code == 0, run.output[-5000:]
    assert served(topology) == [live, OTHER[live]] and out_of_the_lb(topology) == ["172.30.77.11"]
    assert [host.shell(f"ls {lock}", check=False) for host in topology.apps] == ["", ""]
    run = topology.app1.deploy(OTHER[live], **FAST)
    assert run.code == 0, run.output[-5000:]
    assert served(topology) == [OTHER[live]] * 2 and out_of_the_lb(topology) == []


def test_one_scheduler_runs_and_another_host_takes_over(topology, live):
    beats = "pgrep -fc '^[^ ]+ [^ ]+/[c]elery .* beat ' || true"

    def schedulers():
        return [int(host.shell(beats)) for host in topology.apps]

    wait_for(lambda: sum(schedulers()) == 1, 120, "one scheduler")
    before = schedulers()
    holder, other = topology.apps if before[0] else reversed(topology.apps)
    # A restart moves it nowhere.
    holder.shell("systemctl restart 'shiftmaster-beat@*'")
    wait_for(lambda: schedulers() == before, 30, "the scheduler of the same host")
    holder.shell("systemctl stop 'shiftmaster-beat@*'")
    wait_for(lambda: int(other.shell(beats)) == 1, 120, "the scheduler of the other host")
    holder.shell("systemctl start shiftmaster-beat@$(basename $(readlink /var/www/shiftmaster/active))")
    # Its file would send again what was sent since; it removes it when the other one has been at work for 30 s.
    wait_for(lambda: holder.shell("ls /var/lib/shiftmaster-beat/") == "", 90, "no file on the host that waits")
    assert schedulers() == before[::-1], "the other host keeps it"


def test_an_operator_drains_and_restores_a_host(topology):
    with load(topology.edge, *TRAFFIC, BROWSER, seconds=900) as traffic:
        run = topology.app1.run("playbooks/drain.yml", host="cluster-app2", state="out", reason="new memory")
        assert run.code == 0 and out_of_the_lb(topology) == ["172.30.77.12"], run.output[-3000:]
        last = topology.app1.run("playbooks/drain.yml", host="cluster-app1", state="out", reason="x")
        assert last.code == 2 and last.prints("last server"), last.output[-3000:]
        run = topology.app1.run("playbooks/drain.yml", host="cluster-app2", state="in")
        assert run.code == 0 and out_of_the_lb(topology) == [], run.output[-3000:]
    traffic.assert_flawless()
    wrong = topology.app1.run("playbooks/drain.yml", host="cluster-app9", state="out")
    assert wrong.code != 0 and wrong.prints("cluster-app9"), wrong.output[-3000:]


def test_a_host_whose_application_is_stopped_by_hand(topology, live):
    """Safe requests are repeated on the other one."""
    topology.app2.shell("systemctl stop shiftmaster")
    try:
        query = "for i in $(seq 40); do curl -skS -o /dev/null -w '%{http_code}\\n' https://localhost/login/; done"
        assert topology.edge.shell(query).split() == ["200"] * 40
    finally:
        topology.app2.shell("systemctl start shiftmaster")
    wait_for(lambda: topology.app2.live_version(5) == live, 120, "app2")


def test_a_host_missing_from_the_load_balancer(topology, live):
    kept = topology.edge.shell(f"cat {SERVERS}")
    topology.edge.shell(f"sed -i /172.30.77.12/d {SERVERS}")
    run = topology.app1.deploy(live, **FAST)
    assert run.code == 2 and run.prints("has no line for cluster-app2", "--tags nginx"), run.output[-3000:]
    run = topology.app1.run("deploy.yml", "--tags", "nginx", shiftmaster_version=live)
    assert run.code == 0, run.output[-3000:]
    assert set(re.findall("^server (.*?) ", topology.edge.shell(f"cat {SERVERS}"), re.M)) == set(
        re.findall("^server (.*?) ", kept, re.M)
    )


def test_killed_between_two_hosts_of_a_change_of_the_configuration(topology, live):
    """Both releases are of one revision: the host that had switched is rolled back before any host continues."""
    topology.app2.hold("switch")
    process = start(topology, live, shiftmaster_batches=[1], shiftmaster_extra_environment={"TEST": "1"})
    topology.app2.wait_at("switch", process, LOG)
    assert [step["phase"] for step in transitions(topology)] == ["watch", "switch"], "so this verifies nothing"
    kill_run(topology.app2, process, *topology.all)
    topology.app2.release_hold()
    run = topology.app1.deploy("broken-requirement", **FAST)
    assert run.code == 2, run.output[-3000:]
    assert transitions(topology) == [None, None] and served(topology) == [live, live]
    holding = "grep -c '^TEST=' $(readlink -f /var/www/shiftmaster/active/release)/env || true"
    assert [host.shell(holding).strip() for host in topology.apps] == ["0", "0"]


def test_a_run_without_application_hosts_is_reported(topology):
    run = topology.app1.run("deploy.yml", "--limit", "cluster-edge", shiftmaster_version="2.0.0")
    assert run.code == 0 and run.prints("leaves out every application host"), run.output[-3000:]


def forget_facts() -> None:
    for path in (ROOT / ".cache" / "facts").glob("*cluster-*"):
        path.unlink()


def test_addresses_missing_from_the_inventory(topology, live, tmp_path):
    """drain.yml and rollback.yml query the hosts for them."""
    text = Path(topology.app1.inventory, "hosts.yml").read_text()
    for message, instead in (
        ("ansible_connection: ssh", "ansible_connection: community.docker.docker"),
        ('ansible_host: "{{ container_address }}"', ""),
        ("{{ inventory_dir }}/../../../.cache/scenario", str(SCENARIO_HOME)),
    ):
        assert message in text
        text = text.replace(message, instead)
    (tmp_path / "hosts.yml").write_text(text)
    nameless = Operations(tmp_path / "hosts.yml", topology.app1.host)
    nameless.vault = topology.vault
    assert topology.app1.deploy(OTHER[live], **FAST).code == 0
    forget_facts()
    run = nameless.run("playbooks/drain.yml", host="cluster-app2", state="out")
    assert run.code == 0 and out_of_the_lb(topology) == ["172.30.77.12"], run.output[-3000:]
    forget_facts()
    run = nameless.rollback()
    assert run.code == 0, run.output[-4000:]
    assert served(topology) == [live, live] and out_of_the_lb(topology) == []


def test_the_first_host_is_installed_again(topology, live):
    """The load balancer does not know it: it gets no request before its release is live; the database exists."""
    with load(topology.edge, *TRAFFIC, BROWSER, seconds=900) as traffic:
        assert (
            topology.app1.run("playbooks/drain.yml", host="cluster-app1", state="out", reason="installed again").code
            == 0
        )
        uninstall(topology.app1)
        topology.edge.shell(f"sed -i /172.30.77.11/d {SERVERS} && systemctl reload nginx")
        topology.app1.hold("start")
        process = topology.app1.start("deploy.yml", LOG, shiftmaster_version=live, **FAST)
        topology.app1.wait_at("start", process, LOG)
        assert "down; # new" in topology.edge.shell(f"grep 172.30.77.11 {SERVERS}")
        topology.app1.release_hold()
        assert process.wait(900) == 0, LOG.read_text()[-5000:]
    traffic.assert_flawless()
    assert served(topology) == [live, live] and out_of_the_lb(topology) == []
    run = topology.app1.run("deploy.yml", shiftmaster_version=live, **FAST)
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]

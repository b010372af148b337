"""Two processors and 4 GB are enough for all functions under load, during a deploy and a backup."""

from __future__ import annotations

import json
import threading

from support import load

MIB = 1 << 20
# Of both versions of control groups.
METRICS = "cd /sys/fs/cgroup; cat memory.events memory.stat memory/memory.oom_control memory/memory.stat 2>/dev/null"
OOM_KILLS = METRICS + " | awk '/^oom_kill /{print $2}'"
ANONYMOUS = METRICS + " | awk '/^(anon|total_rss) /{print $2}'"


class Memory(threading.Thread):
    """Reads once a second how much memory is not backed by files; `most` is the largest value, in bytes."""

    def __init__(self, operations):
        super().__init__(daemon=True)
        self.operations, self.ended, self.most = operations, threading.Event(), 0

    def run(self):
        while not self.ended.wait(1):
            self.most = max(self.most, int(self.operations.shell(ANONYMOUS)))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_error):
        self.ended.set()
        self.join()


def test_a_deploy_and_a_backup_under_load_fit(operations, capsys):
    units = operations.shell("systemctl list-units --plain --no-legend --state=active 'prometheus*' 'grafana*'")
    assert {"prometheus.service", "prometheus-alertmanager.service"} <= set(units.split()), units
    with Memory(operations) as memory, load(
        operations, "--clients", "16", "--think-seconds", "0.5", seconds=1800
    ) as current:  # fmt: skip
        deploy = operations.deploy("2.1.0")
        backup = operations.run("playbooks/backup.yml", timeout=1800)
    with capsys.disabled():
        print(f"\n  most memory that is not backed by files: {memory.most // MIB} MiB")
    assert deploy.code == 0, deploy.output[-4000:]
    assert backup.code == 0, backup.output[-4000:]
    assert operations.shell(OOM_KILLS).strip() == "0"
    # mtail may read every log of the directory: it retries four times a second, and reports each time.
    assert operations.shell("journalctl --quiet --unit=mtail --grep='permission denied' || true") == ""
    assert current.summary["failed"] == 0, current.summary
    # A third of the host remains for the page cache, in which the database's pages are.
    assert 500 * MIB < memory.most < 2700 * MIB, f"{memory.most // MIB} MiB"


def test_an_uninstall_makes_a_last_backup_that_is_verified(operations):
    manifests = "/var/backups/shiftmaster/manifests"
    before = set(operations.shell(f"ls {manifests}").split())
    run = operations.run("playbooks/uninstall.yml", confirm="localhost", timeout=1800)
    assert run.code == 0, run.output[-3000:]
    (last,) = set(operations.shell(f"ls {manifests}").split()) - before
    made = json.loads(operations.shell(f"cat {manifests}/{last}"))
    results = {name: part["result"] for name, part in made["parts"].items()}
    assert made["result"] == "succeeded" and set(results.values()) <= {"succeeded", "skipped"}, made
    assert any(one["how"] == "restore_test" and one["good"] for one in made["parts"]["database"]["verified"])
    assert operations.shell("ls -d /var/www/shiftmaster/releases || true") == ""

import json
from contextlib import contextmanager

import pytest
from support import Operations, operations_of

operations = operations_of(__file__)

DIRECTORY = "/var/backups/shiftmaster"
RUNS = f"{DIRECTORY}/manifests"
OPTIONS = "/etc/shiftmaster-backup/options.json"


class Backups:
    """The backups of a host as an administrator sees them."""

    def __init__(self, operations: Operations):
        self.operations, self.shell = operations, operations.shell

    def run(self, check: bool | None = True, timeout: int = 1200, **request) -> dict:
        """Start the unit as a schedule or a playbook does, and return its manifest; {} where it did not begin.

        check: whether it has to succeed; None where it may do either.
        """
        name = self.shell("date -u +%Y%m%dT%H%M%SZ-").strip() + "%06x" % (abs(hash(json.dumps(request))) & 0xFFFFFF)
        self.note_request(name, **request)
        code = self.shell(
            f"systemctl start shiftmaster-backup@{name}.service >/dev/null 2>&1; echo $?", timeout=timeout
        ).strip()
        text = self.shell(f"cat {RUNS}/{name}.json 2>/dev/null", check=False)
        manifest = json.loads(text) if text else {}
        if check:
            assert code == "0" and manifest["result"] == "succeeded", manifest or self.log()
        elif check is False:
            assert code != "0" and manifest.get("result", "failed") == "failed", "it is reported as good"
        return manifest

    def why(self, manifest: dict) -> str:
        """The reasons of a failed run, as one text."""
        problems = [p for part in manifest["parts"].values() for p in part["problems"]] + manifest["problems"]
        return "; ".join(problem["what"] for problem in problems)

    def kept(self) -> set:
        """Everything that can be restored: backups, snapshots, dumps."""
        return set(
            self.shell(
                f"cd {DIRECTORY}; ls pgbackrest/backup/shiftmaster | grep -E '[FDI]$'; ls restic/snapshots; ls logical"
            ).split()
        )

    def wait_until_idle(self) -> None:
        self.shell("while systemctl is-active shiftmaster-backup | grep -q activating; do sleep 1; done", timeout=1200)

    def manifest(self, run_id: str) -> dict:
        return json.loads(self.shell(f"cat {RUNS}/{run_id}.json"))

    def manifests(self) -> list:
        return [self.manifest(name[:-5]) for name in self.shell(f"ls {RUNS} 2>/dev/null || true").split()]

    def note_request(self, run_id: str, **request) -> None:
        """Note what a run is requested, as a playbook does."""
        self.shell("install -d -m 755 /run/shiftmaster-backup && install -d -m 700 /run/shiftmaster-backup/requests")
        self.shell(f"cat > /run/shiftmaster-backup/requests/{run_id}.json", stdin=json.dumps(request))

    def metric(self, name: str) -> dict:
        """{kind: value} of a metric, as node exporter would read it."""
        found = {}
        for line in self.shell("cat /var/lib/prometheus/node-exporter/shiftmaster_backup.prom").splitlines():
            if line.startswith((name + "{", name + " ")):
                labels, value = line[len(name) :].split(" ")
                found[labels.removeprefix('{kind="').removesuffix('"}')] = int(value)
        return found

    def configured(self) -> dict:
        return json.loads(self.shell(f"cat {OPTIONS}"))

    @contextmanager
    def options(self, **changed):
        """Other options of the program while the block runs."""
        self.shell(f"cp -p {OPTIONS} {OPTIONS}.kept")
        try:
            self.shell(f"cat > {OPTIONS}", stdin=json.dumps({**self.configured(), **changed}))
            yield
        finally:
            self.shell(f"mv {OPTIONS}.kept {OPTIONS}")

    def log(self) -> str:
        return self.shell("tail -n 30 /var/log/shiftmaster/backup.log", check=False)

    def sql(self, statement: str, database: str = "shiftmaster") -> str:
        return self.shell(f"runuser -u postgres -- psql -XqAt -d {database}", stdin=statement).strip()

    def pgbackrest(self, *arguments: str) -> str:
        return self.shell("runuser -u postgres -- pgbackrest --stanza=shiftmaster " + " ".join(arguments))


@pytest.fixture(scope="session")
def backups(operations):
    return Backups(operations)


@pytest.fixture(scope="session")
def first(backups):
    """A good backup of everything, from which the tests continue."""
    found = [one for one in backups.manifests() if one["result"] == "succeeded" and len(one["parts"]) == 4]
    return found[-1] if found else backups.run(only="database,logical,files,configuration", kind="full")

"""Files of the previous tree on a host are renamed under load, and stay in use: releases, waiting tasks, backups."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from support import APP, BROWSER, ROOT, Operations, all_ran_once, enqueue, load

INVENTORY = Path(__file__).parent.parent / "inventory"
HOST = "upgrade-trixie"
# The last tree with the names that module_utils/shiftmaster/release/legacy.py renames.
PREVIOUS = "40d3ad3f"
# Certificates of this machine, and directories for the backup that no other scenario changes meanwhile.
CONTROLLER = ("--inventory", str(ROOT / "inventory/demo/controller.py"))
DIRECTORIES = {"group_vars": "{{ playbook_dir }}/../group_vars", "authorities": "{{ tls_internal_ca_dir }}"}
MANIFESTS = "/var/backups/shiftmaster/manifests"
# More work than the two processes of the worker have done when it is handed over.
WAITING = 40
RENAME = "Configure | Rename files of a version before 1.0.0"
# Paths of the previous layout, in names and in what root's files name.
OLD = r"/colours\b|shared/parked|shared/set-aside|/usr/local/lib/shiftmaster"


class Tree(Operations):
    """The playbooks of one tree."""

    def __init__(self, root: Path, directories: str):
        super().__init__(INVENTORY, HOST)
        self.root, self.directories = root, directories

    def run(self, playbook: str, *arguments: str, timeout: int = 1800, **extra):
        return super().run(
            playbook, *CONTROLLER, *arguments, timeout=timeout, **{self.directories: DIRECTORIES}, **extra
        )


class Previous(Tree):
    def environment(self) -> dict:
        """Without this tree's own directories, which molecule has in the environment."""
        directories = ("_LIBRARY", "_PATH", "_PLUGINS")
        return {key: value for key, value in super().environment().items() if not key.endswith(directories)}


def check(run) -> None:
    assert run.code == 0, run.output[-8000:]


@pytest.fixture(scope="session")
def operations():
    return Tree(ROOT, "backup_controller_dirs")


@pytest.fixture(scope="session", autouse=True)
def left(operations) -> dict:
    """State of the previous tree: two releases, tasks that the live one does not know, a backup.

    Another run of the tests on the host continues with it.
    """
    kept = operations.shell("cat /root/left.json 2>/dev/null", check=False)
    if kept:
        return json.loads(kept)
    root = ROOT / ".cache" / "previous"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    tree = subprocess.run(["git", "archive", PREVIOUS], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "x"], cwd=root, input=tree, check=True)
    previous = Previous(root, "backup_controller_folders")
    check(previous.run("deploy.yml", shiftmaster_version="2.0.0"))
    check(previous.deploy("2.1.0"))
    previous.manage("seed_demo")
    enqueue(previous, "parked", 3, WAITING, task="summarize_month")
    check(previous.rollback())
    previous.shell(f"mkdir {APP}/shared/set-aside && echo '{{}}' >{APP}/shared/set-aside/1.json")
    previous.python("from roster.models import Ward; Ward.objects.create(slug='saved', name_en='x')")
    check(previous.run("playbooks/backup.yml", kind="full"))
    run_id = previous.shell(f"ls {MANIFESTS} | tail -n 1").strip().removesuffix(".json")
    found = {"run_id": run_id, "releases": previous.shell(f"ls {APP}/releases").split()}
    previous.shell("cat >/root/left.json", stdin=json.dumps(found))
    return found


@pytest.fixture
def under_load(operations):
    """Run a step while 16 users work and tasks run: no failed request, no lost write, each task once."""

    def run(name: str, step, version: str):
        with load(operations, BROWSER, "--clients", "16", "--think-seconds", "0.5", seconds=1800) as current:
            enqueue(operations, f"{name}-long", 8, 2)
            enqueue(operations, f"{name}-short", 0.05, 60)
            with current.window(name):
                done = step()
            check(done)
            assert operations.live_version(10) == version
        current.assert_flawless()
        all_ran_once(operations, f"{name}-long", 2, 300)
        all_ran_once(operations, f"{name}-short", 60, 300)
        return done

    return run


def kept_tasks(operations) -> list:
    """Tasks that no release has run, by the directories that hold them."""
    return operations.shell(f"cd {APP}/shared && find parked unknown-tasks -name '*.json'", check=False).split()


def test_the_previous_tree_left_what_is_to_be_renamed(operations, left):
    assert operations.shell(f"readlink {APP}/active").startswith("colours/")
    assert kept_tasks(operations) and len(left["releases"]) == 2


def test_check_mode_reports_renames_and_makes_none(operations):
    before = operations.fingerprint()
    # It was live before the one to which the previous tree has rolled back: a run that names none is rejected.
    run = operations.run("deploy.yml", "--check", "--diff", shiftmaster_version="2.1.0")
    check(run)
    assert f"TASK [shiftmaster : {RENAME}]" in run.output
    assert run.output.split(RENAME, 1)[1].splitlines()[1] == f"changed: [{HOST}]", run.output[-4000:]
    assert operations.fingerprint() == before


def test_the_host_is_read_before_the_first_deploy(operations, left):
    for playbook in ("playbooks/health.yml", "playbooks/diagnose.yml"):
        check(operations.run(playbook))
    run = operations.run("playbooks/restore.yml", target=left["run_id"], confirm=HOST)
    assert run.code == 2 and run.prints("Nothing was changed", "deploy.yml --tags app,backup"), run.output[-4000:]
    assert operations.live_version() == "2.0.0"


def test_a_rollback_before_the_first_deploy(operations, under_load):
    """To the newer release, which runs what the previous tree kept, and back, which keeps tasks again."""
    under_load("forward", lambda: operations.rollback(to="2.1.0"), "2.1.0")
    all_ran_once(operations, "parked", WAITING, 600)
    assert kept_tasks(operations) == []
    enqueue(operations, "kept", 3, WAITING, task="summarize_month")
    under_load("back", operations.rollback, "2.0.0")
    assert kept_tasks(operations)
    assert operations.shell(f"readlink {APP}/active").startswith("colours/")
    operations.shell("shiftmasterctl status")
    operations.reboot()
    assert operations.live_version(120) == "2.0.0"


def test_a_deploy_renames_and_upgrades(operations, under_load):
    under_load("deploy", lambda: operations.run("deploy.yml", shiftmaster_version="2.1.0"), "2.1.0")
    all_ran_once(operations, "kept", WAITING, 600)
    assert kept_tasks(operations) == []
    assert operations.shell(f"cat {APP}/shared/quarantine/1.json") == "{}\n"
    left = operations.shell(
        f"find {APP} /usr/local /etc -xdev -path {APP}/releases -prune -o -print | grep -E '{OLD}'; "
        f"grep -rElI '{OLD}' /etc /usr/local; systemctl cat 'shiftmaster*' | grep -E '{OLD}'",
        check=False,
    )
    assert left == ""
    assert operations.shell("systemctl --failed --no-legend") == ""


def test_a_second_run_changes_nothing(operations):
    run = operations.run("deploy.yml")
    assert (run.code, run.changed) == (0, 0), run.output[-8000:]


def test_a_release_of_the_previous_tree_is_rolled_back_to(operations, left, under_load):
    under_load("rollback", operations.rollback, "2.0.0")
    assert operations.shell(f"basename $(readlink -f {APP}/active/release)").strip() in left["releases"]
    operations.reboot()
    assert operations.live_version(120) == "2.0.0"


def test_health_and_diagnosis_have_no_finding(operations):
    for playbook in ("playbooks/health.yml", "playbooks/diagnose.yml"):
        check(operations.run(playbook))


def test_a_backup_of_the_previous_tree_is_verified(operations, left):
    check(operations.run("playbooks/restore.yml", into="scratch", target=left["run_id"]))


def test_a_backup_of_the_previous_tree_is_restored(operations, left):
    def saved() -> str:
        return operations.python(
            "from roster.models import Ward; print(Ward.objects.filter(slug='saved').count())"
        ).strip()

    assert saved() == "1"
    operations.python("from roster.models import Ward; Ward.objects.filter(slug='saved').delete()")
    check(operations.run("playbooks/restore.yml", target=left["run_id"], confirm=HOST, timeout=3000))
    assert operations.live_version(60) == "2.0.0" and saved() == "1"

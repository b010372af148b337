"""Additions and options of a site: hooks, supplied health endpoints, a named dump, a lock without an owner."""

import json
import subprocess

import pytest
from support import APP, ROOT, SCENARIO_HOME, uninstall

PAGE = f"{APP}/shared/maintenance/on"
LOG = SCENARIO_HOME / "faults.log"
NOTES = f"{APP}/shared/media/hooks.log"


def hook(phase: str, command: str, **more) -> dict:
    return {"shiftmaster_hooks": [{"name": f"the site's {phase}", "phase": phase, "command": command, **more}]}


def schema_of_2_0_0(operations) -> None:
    """Begin at 2.0.0 on its own schema, so that 2.1.0 has a migration to run."""
    rows = "SELECT name FROM django_migrations WHERE app = 'roster'"
    ahead = "0002_" in operations.shell(f'runuser -u postgres -- psql -qtAd shiftmaster -c "{rows}"')
    version = operations.live_version(10)
    if version == "2.0.0" and not ahead:
        return
    if version != "2.1.0":
        assert operations.deploy("2.1.0", shiftmaster_watch_seconds=1).code == 0
    run = operations.rollback(to="2.0.0", schema="reverse")
    assert run.code == 0, run.output[-4000:]


def test_a_dump_is_restored_by_its_name(operations):
    schema_of_2_0_0(operations)
    operations.python("from roster.models import Ward; Ward.objects.create(slug='early', name_en='x')")
    assert operations.deploy("2.1.0", shiftmaster_watch_seconds=1).code == 0
    operations.python("from roster.models import Ward; Ward.objects.create(slug='later', name_en='x')")
    copy = operations.shell("ls /var/backups/shiftmaster/pre-migration/*.dump | tail -n 1").strip()
    missing = operations.rollback(schema="restore", dump="../../../etc/passwd")
    assert missing.code == 2 and missing.prints("There is no pre-migration dump ../../../etc"), missing.output[-4000:]
    assert operations.live_version(10) == "2.1.0"
    assert operations.shell(f"ls {PAGE} 2>/dev/null", check=False) == ""
    run = operations.rollback(schema="restore", dump=copy)
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(10) == "2.0.0"
    slugs = operations.python(
        "from roster.models import Ward; print(list(Ward.objects.values_list('slug', flat=True)))"
    )
    assert "early" in slugs and "later" not in slugs


def test_hooks_run_in_their_phases(operations):
    schema_of_2_0_0(operations)
    phases = ["before_migrate", "after_migrate", "before_cutover", "after_cutover", "after_rollback"]
    hooks = [
        {"name": phase, "phase": phase, "command": f'echo {phase} "$DB_NAME" $(id -un) >> {NOTES}'} for phase in phases
    ]
    run = operations.deploy("2.1.0", shiftmaster_watch_seconds=1, shiftmaster_hooks=hooks)
    assert run.code == 0, run.output[-4000:]
    assert operations.rollback(to="2.0.0", shiftmaster_hooks=hooks).code == 0
    expected = [phase for phase in phases if phase != "after_rollback"] + ["before_cutover", "after_rollback"]
    notes = operations.shell(f"cat {NOTES}; rm {NOTES}")
    assert notes.splitlines() == [f"{phase} shiftmaster shiftmaster" for phase in expected]


# A setting that is new, so that a release is built; its absence in the live release is no finding.
@pytest.mark.parametrize(("phase", "new"), [("after_build", "a"), ("before_cutover", "b"), ("after_cutover", "b")])
def test_a_hook_that_fails_fails_its_phase(operations, phase, new):
    run = operations.deploy(
        "2.1.0",
        shiftmaster_watch_seconds=1,
        shiftmaster_extra_environment={"NEW": new},
        **hook(phase, "echo not today; exit 3"),
    )
    assert run.code == 2, run.output[-4000:]
    assert run.prints(f"hook the site's {phase} ({phase}) ended with code 3", "not today"), run.output[-4000:]
    assert "Diagnosis:" not in run.output, run.output[-4000:]
    assert operations.live_version(10) == "2.0.0"
    assert operations.state()["transition"] is None


def test_a_hung_hook_is_ended_and_the_message_contains_problems_of_the_host(operations):
    operations.shell("mount -t tmpfs -o size=1m tmpfs /mnt && head -c 2m /dev/zero > /mnt/full", check=False)
    try:
        run = operations.deploy("2.1.0", **hook("before_cutover", "sleep 600", timeout_seconds=3))
    finally:
        operations.shell("umount /mnt")
    assert run.code == 2, run.output[-4000:]
    assert run.prints("the site's before_cutover", "Diagnosis: ", "/mnt", "Runbook: "), run.output[-4000:]
    # It would end by itself after ten minutes.
    assert operations.shell("pgrep -cfx 'sleep 600' || true").strip() == "0"


def test_health_endpoints_are_supplied(operations):
    """?checks= is understood by the supplied endpoint only."""
    run = operations.deploy("2.0.0", shiftmaster_supply_health=True, shiftmaster_watch_seconds=1)
    assert run.code == 0, run.output[-4000:]
    response = json.loads(operations.shell("curl -sS -m 15 'http://localhost:8000/health/deep/?checks=cache,worker'"))
    assert (response["status"], response["version"], set(response["checks"])) == (
        "healthy",
        "2.0.0",
        {"cache", "worker"},
    )
    assert response["release"] == operations.shell(f"basename $(readlink -f {APP}/active/release)").strip()
    assert operations.live_version(10) == "2.0.0"
    # An unknown client learns whether it is healthy, and nothing more.
    assert json.loads(operations.shell("curl -skS https://localhost/health/", check=False)) == {"status": "healthy"}
    again = operations.deploy("2.0.0", shiftmaster_supply_health=True)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]


def test_a_lock_of_another_controller_is_replaced_when_its_run_is_named(operations):
    """The run of a removed machine: its end cannot be detected, so an operator decides it."""
    other = {
        "state": "present", "run_id": "20200101T000000Z-aaaaaa", "owner": "nurse@another-machine", "ttl_seconds": 9999,
        "controller": {"machine": "another-machine", "pid": 1, "start": 1},
    }  # fmt: skip
    subprocess.run(
        ["ansible", "--inventory", operations.inventory, "--module-name", "shiftmaster_lock", "--args",
         json.dumps(other), operations.host],
        cwd=ROOT, env=operations.environment(), check=True, capture_output=True,
    )  # fmt: skip
    refused = operations.deploy("2.0.0", shiftmaster_lock_wait_seconds=0)
    assert refused.code == 2 and refused.prints("nurse@another-machine holds the lock"), refused.output[-3000:]
    assert refused.prints("-e shiftmaster_lock_take_over=20200101T000000Z-aaaaaa")
    run = operations.deploy("2.0.0", shiftmaster_lock_take_over="20200101T000000Z-aaaaaa", shiftmaster_watch_seconds=1)
    assert run.code == 0, run.output[-3000:]
    audit = operations.shell(f"grep lock_taken_over {APP}/shared/state/audit.jsonl | tail -n 1")
    assert "nurse@another-machine" in audit


def test_a_reverse_that_cannot_begin_leaves_the_newer_version(operations):
    """Another session holds the table: nothing was reversed, the page ends, the newer version stays live."""
    assert operations.deploy("2.1.0", shiftmaster_watch_seconds=1).code == 0
    holder = subprocess.Popen(
        ["docker", "exec", operations.host, "runuser", "-u", "postgres", "--", "psql", "-q", "shiftmaster", "-c",
         "BEGIN; LOCK TABLE roster_ward IN ACCESS SHARE MODE; SELECT pg_sleep(120)"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        run = operations.rollback(to="2.0.0", schema="reverse", shiftmaster_migration_lock_timeout_seconds=2)
    finally:
        operations.shell(
            'runuser -u postgres -- psql -qc "SELECT pg_terminate_backend(pid) FROM pg_stat_activity '
            "WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()\""
        )
        holder.wait(30)
    assert run.code == 2, run.output[-4000:]
    assert operations.live_version(10) == "2.1.0"
    assert operations.shell(f"ls {PAGE} 2>/dev/null", check=False) == ""
    code = operations.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/")
    assert code == "200"


def test_the_page_stays_where_no_release_fits_the_schema(operations):
    """The schema is back, the older release does not start: neither version may meet users. A deploy repairs it."""
    background = "systemctl list-units --plain --no-legend --state=active 'shiftmaster-worker@*' 'shiftmaster-beat@*'"
    versions = operations.shell(f"cd {APP}/releases && grep -lx 2.0.0 */source/VERSION").split()
    servers = [f"{APP}/releases/{path.split('/')[0]}/venv/bin/gunicorn" for path in versions]
    for path in servers:
        operations.shell(f"mv {path} {path}.away")
    try:
        run = operations.rollback(to="2.0.0", schema="reverse")
    finally:
        for path in servers:
            operations.shell(f"mv {path}.away {path}")
    assert run.code == 2 and run.prints("The maintenance page stays up"), run.output[-6000:]
    assert "503" in operations.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/")
    assert operations.shell(background) == "", "tasks of the newer version would meet the older schema"
    # A failed run does not disable the page that an earlier one enabled.
    run = operations.deploy("broken-requirement")
    assert run.code == 2 and run.prints("needs roster.0002_minimum_staff_kind_summary, not applied"), run.output[-6000:]
    assert "503" in operations.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/")
    assert operations.shell(background) == ""
    run = operations.deploy("2.1.0", shiftmaster_watch_seconds=1)
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(10) == "2.1.0"
    assert operations.shell(background).count("\n") == 2
    # The dump before that deploy has the older schema: it must not be restored as the data of 2.1.0.
    newest = operations.shell("ls -t /var/backups/shiftmaster/pre-migration/*.json | head -1").strip()
    assert json.loads(operations.shell(f"cat {newest}"))["release"] == ""
    code = operations.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/")
    assert code == "200"


@pytest.mark.parametrize("schema", ["reverse", "restore"])
def test_a_version_that_fails_after_contract_migrations(operations, schema):
    """The live one does not survive the schema: no run but the named way back lets users in."""
    background = "systemctl list-units --plain --no-legend --state=active 'shiftmaster-worker@*' 'shiftmaster-beat@*'"
    login = "curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/"
    assert operations.deploy("2.1.0", shiftmaster_watch_seconds=1).code == 0
    run = operations.deploy("2.2.0", shiftmaster_allow_contract=True, **hook("before_cutover", "false"))
    assert run.code == 2 and run.prints("The maintenance page stays up"), run.output[-6000:]
    run = operations.deploy("2.1.0", shiftmaster_watch_seconds=1)
    assert run.code == 2 and operations.shell(login) == "503", run.output[-6000:]
    assert operations.shell(background) == ""
    # Nor does a boot start it.
    operations.shell("systemctl stop shiftmaster && systemctl start shiftmaster", timeout=300)
    web = "systemctl list-units --plain --no-legend --state=active 'shiftmaster-web@*'"
    assert operations.shell(background) == "" and operations.shell(web).count("\n") == 1
    run = operations.rollback(to="2.1.0", schema=schema)
    assert run.code == 0, run.output[-6000:]
    assert operations.live_version(10) == "2.1.0" and operations.shell(login) == "200"
    assert operations.shell(background).count("\n") == 2
    # Its copies belong to no release.
    newest = operations.shell("ls -t /var/backups/shiftmaster/pre-migration/*before-rollback*.json | head -1").strip()
    assert json.loads(operations.shell(f"cat {newest}"))["release"] == ""


def test_a_rollback_to_code_without_its_migrations_is_rejected(operations):
    schema_of_2_0_0(operations)
    run = operations.rollback(to="2.1.0")
    assert run.code == 2, run.output[-4000:]
    assert run.prints("2.1.0 needs roster.", "which the database does not have", "shiftmaster_version=2.1.0"), (
        run.output
    )
    assert operations.live_version(10) == "2.0.0" and operations.shell(f"ls {PAGE} 2>/dev/null", check=False) == ""


def test_a_first_deploy_that_fails_after_its_switch(operations):
    """It has nothing to go back to, so it stays live, and the next run reports that."""
    uninstall(operations)
    operations.hold("watch")
    process = operations.start("deploy.yml", LOG, shiftmaster_version="2.0.0")
    operations.shell(f"kill -KILL {operations.wait_at('watch', process, LOG)}")
    assert process.wait(300) != 0
    operations.release_hold()
    release = operations.shell(f"basename $(readlink -f {APP}/active/release)").strip()
    assert operations.state()["releases"][release]["status"] == "ready", "so this verifies nothing"
    assert operations.shell("systemctl is-enabled shiftmaster.service").strip() == "enabled", "a reboot would end it"
    run = operations.deploy("2.0.0", shiftmaster_watch_seconds=1)
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(10) == "2.0.0" and operations.state()["releases"][release]["status"] == "live"
    again = operations.deploy("2.0.0")
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]


def test_a_release_whose_files_are_damaged_is_built_again(operations):
    """Damage by any user is shown by a restart; the next run repairs it."""
    assert operations.live_version(10) == "2.0.0"
    damaged = operations.shell(f"basename $(readlink -f {APP}/active/release)").strip()
    operations.shell(f"rm -r {APP}/releases/{damaged}/source/roster")
    operations.shell("systemctl kill --signal=KILL 'shiftmaster-web@*'; sleep 3; systemctl stop 'shiftmaster-web@*'")
    run = operations.deploy("2.0.0", shiftmaster_watch_seconds=1)
    assert run.code == 0 and operations.live_version(10) == "2.0.0", run.output[-4000:]
    assert operations.shell(f"basename $(readlink -f {APP}/active/release)").strip() != damaged


def test_the_summary_names_the_page_that_an_operator_has_enabled(operations):
    """And a second run changes nothing, also of a release that was built again (the test before)."""
    operations.shell(f"touch {PAGE}")
    try:
        run = operations.deploy("2.0.0", shiftmaster_watch_seconds=1)
    finally:
        operations.shell(f"rm {PAGE}")
    assert (run.code, run.changed) == (0, 0), run.output[-3000:]
    assert run.prints("the maintenance page that somebody has put up", operations.host), run.output[-3000:]


def test_a_run_without_a_release_does_not_need_the_git_server(operations):
    away = {"shiftmaster_git_url": "file:///there/is/no/repository.git"}
    run = operations.run("deploy.yml", "--tags", "nginx", **away)
    assert run.code == 0 and run.changed == 0, run.output


def test_an_unknown_tag_is_rejected(operations):
    run = operations.run("deploy.yml", "--tags", "relase", shiftmaster_version="2.0.0")
    assert run.code == 2 and run.prints("There is no tag relase; there are base,"), run.output[-3000:]

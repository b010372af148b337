"""New versions and rollbacks while 64 users work (16 in the sample): no failed request, lost task or lost write."""

import json

import pytest
from support import SAMPLE, all_ran_once, enqueue, load

RUNS, CLIENTS = (1, 16) if SAMPLE else (5, 64)
FAST = {"shiftmaster_watch_seconds": 5}


def steps(operations):
    yield "deploy", lambda: operations.deploy("2.1.0", **FAST), "2.1.0"
    yield "rollback", lambda: operations.rollback(), "2.0.0"
    yield "again", lambda: operations.deploy("2.1.0", **FAST), "2.1.0"


@pytest.mark.sample
@pytest.mark.parametrize("number", range(RUNS))
def test_deploy_rollback_deploy_under_load(operations, number, capsys):
    """2.0.0, 2.1.0, back, 2.1.0 under clients that read and write through TLS, with tasks of all kinds under way."""
    page = operations.shell("curl -skS https://localhost/login/")
    static = page.split('href="/static/')[1].split('"')[0]
    with load(operations, "--clients", str(CLIENTS), "--think-seconds", "1.0", seconds=600) as current:
        for name, step, version in steps(operations):
            before = operations.live_version()
            # Long and short tasks are running and waiting when the workers change hands; on the rollback new ones, too.
            enqueue(operations, f"long-{number}-{name}", 8, 2)
            enqueue(operations, f"short-{number}-{name}", 0.05, 60)
            new = "summarize_month" if before == "2.1.0" else None
            if new:
                enqueue(operations, f"new-{number}-{name}", 0.2, 30, task=new)
            with current.window(name):
                run = step()
            assert run.code == 0, run.output[-6000:]
            assert operations.live_version() == version
            # Files that the earlier page names still exist.
            response = operations.shell(f"curl -skS -o /dev/null -w '%{{http_code}}' https://localhost/static/{static}")
            assert response == "200"
    summary = current.summary
    with capsys.disabled():
        print(f"\nrun {number + 1}: {json.dumps({key: summary[key] for key in ('requests', 'failed')})}")
    current.assert_flawless()
    for name, _step, _version in steps(operations):
        all_ran_once(operations, f"long-{number}-{name}", 2)
        all_ran_once(operations, f"short-{number}-{name}", 60)
    # 2.0.0 does not know this task: none of them was discarded, all ran once 2.1.0 was back.
    new = all_ran_once(operations, f"new-{number}-rollback", 30)
    assert {version for versions in new.values() for version in versions} == {"2.1.0"}
    # The inventory still names 2.0.0: a run that is to change a setting does not go back to it.
    refused = operations.run("deploy.yml", **FAST)
    assert (refused.code, refused.changed) == (2, 0), refused.output[-4000:]
    assert refused.prints("Nothing was changed", "version 2.0.0, which a run deploys"), refused.output[-4000:]
    assert operations.live_version() == "2.1.0"
    # The next run begins from the schema and the earlier releases.
    run = operations.rollback(to="2.0.0", schema="reverse")
    assert run.code == 0, run.output[-6000:]
    assert operations.live_version(10) == "2.0.0"


def test_a_second_run_changes_nothing(operations):
    run = operations.deploy("2.0.0")
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]


def test_restart_by_hand_fails_no_request(operations):
    """`systemctl restart shiftmaster`, as operators type it, goes through the other slot."""
    slot = operations.shell("readlink /var/www/shiftmaster/active")
    with load(operations, "--clients", "16", "--think-seconds", "0.2", seconds=120) as current:
        operations.shell("systemctl restart shiftmaster", timeout=180)
    assert operations.shell("readlink /var/www/shiftmaster/active") != slot
    current.assert_flawless()
    assert operations.shell("systemctl is-active shiftmaster").strip() == "active"


def test_check_mode_before_an_upgrade(operations):
    """Names the revision, the migration and the settings that would change, and changes nothing."""
    before = operations.fingerprint()
    run = operations.deploy("2.1.0", "--check", "--diff", shiftmaster_web_threads=3)
    assert run.code == 0, run.output[-6000:]
    assert run.prints("version: 2.1.0", "0002_minimum_staff_kind_summary", "+threads = 3"), run.output[-6000:]
    assert operations.fingerprint() == before


def test_contract_migration_is_refused_until_it_is_allowed(operations):
    assert operations.deploy("2.1.0", **FAST).code == 0
    refused = operations.deploy("2.2.0", **FAST)
    assert refused.code == 2 and refused.prints("0003_remove_is_night", "Nothing was changed"), refused.output[-4000:]
    assert operations.live_version() == "2.1.0"
    allowed = operations.deploy("2.2.0", shiftmaster_allow_contract=True, **FAST)
    assert allowed.code == 0 and allowed.prints("rollback.yml -e schema=reverse"), allowed.output[-6000:]
    assert operations.live_version() == "2.2.0"


def test_rollback_after_a_contract_migration(operations):
    """Refused with its reason; schema=reverse does it in maintenance mode."""
    refused = operations.rollback()
    assert refused.code == 2 and refused.prints("0003_remove_is_night", "schema=reverse"), refused.output[-4000:]
    assert operations.live_version() == "2.2.0"
    done = operations.rollback(schema="reverse")
    assert done.code == 0, done.output[-6000:]
    undo = "deploy.yml -e shiftmaster_version=2.2.0 -e shiftmaster_allow_contract=true"
    assert done.prints(undo), done.output[-4000:]
    assert operations.live_version(10) == "2.1.0"
    assert operations.shell("curl -skS -o /dev/null -w '%{http_code}' https://localhost/login/") == "200"


def test_rollback_by_restoring_the_pre_migration_dump(operations):
    """schema=restore brings the data from before the migration back and states what is lost."""
    assert operations.deploy("2.2.0", shiftmaster_allow_contract=True, **FAST).code == 0
    operations.python("from roster.models import Ward; Ward.objects.create(slug='late', name_en='x')")
    done = operations.rollback(schema="restore")
    assert done.code == 0 and done.prints("lost"), done.output[-6000:]
    assert operations.live_version(10) == "2.1.0"
    late = operations.python("from roster.models import Ward; print(Ward.objects.filter(slug='late').count())")
    assert late.strip() == "0"


def test_rollbacks_twice_forward_and_to_a_name(operations):
    assert operations.rollback().code == 0
    assert operations.live_version() == "2.0.0"
    nothing = operations.rollback()
    assert nothing.code == 2 and nothing.prints("there is no older release"), nothing.output[-3000:]
    forward = operations.rollback(to="2.1.0")
    assert forward.code == 0, forward.output[-4000:]
    assert operations.live_version() == "2.1.0"
    unknown = operations.rollback(to="9.9.9")
    assert unknown.code == 2 and unknown.prints("there is no release 9.9.9")
    assert operations.rollback(to="2.0.0").code == 0
    assert operations.live_version() == "2.0.0"

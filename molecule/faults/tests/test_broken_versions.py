"""Every broken version: the old one stays live, the message names the fault and its log."""

import pytest
from support import APP, load

# tag: (required parts of the message, whether clients may see it before it goes back by itself)
BROKEN = {
    # The first: what it leaves half done in the database can be undone by its release alone, which all others outlive.
    "broken-migration": (["0003_ward_phone"], False),
    "broken-import": (["broken-import", "Error"], False),
    "broken-health": (["health check /health/deep/", "failed"], False),
    "broken-hang": (["health check /health/deep/", "no response within"], False),
    "broken-requirement": (["install the requirements", "/var/log/shiftmaster/builds/"], False),
    "broken-worker": (["Celery"], False),
    "broken-template": (["broke under traffic", "is live again", "/var/log/shiftmaster/error.log"], True),
}
# Waited for in full by those that hang or whose worker does not start.
SOON = {"shiftmaster_health_timeout_seconds": 6, "shiftmaster_worker_gate_seconds": 40}


@pytest.mark.sample("broken-template")
@pytest.mark.parametrize("version", BROKEN)
def test_broken_version(operations, version):
    sentences, seen = BROKEN[version]
    before = operations.live_version(30)
    current = operations.shell(f"readlink -f {APP}/current").strip()
    with load(operations, "--clients", "8", "--think-seconds", "0.3", seconds=400) as traffic:
        soon = SOON if version in ("broken-hang", "broken-worker") else {}
        run = operations.deploy(version, shiftmaster_watch_seconds=20, **soon)
    assert run.code == 2, run.output[-4000:]
    assert run.prints(*sentences, f"Version {before} is still live."), run.output[-6000:]
    assert operations.live_version(10) == before
    assert operations.shell(f"readlink -f {APP}/current").strip() == current
    assert operations.state()["transition"] is None
    assert operations.shell("systemctl --failed --no-legend").strip() == ""
    running = operations.shell("systemctl list-units --plain --no-legend --state=active 'shiftmaster-*@*'")
    assert running.count("\n") == 3, running
    if not seen:
        traffic.assert_flawless()


def test_bad_release_is_refused_by_name(operations):
    """broken-template was built and marked: no way leads back to it, by name neither."""
    run = operations.rollback(to="broken-template")
    assert run.code == 2 and run.prints("is marked bad"), run.output[-3000:]


def test_the_next_good_version_needs_no_cleanup(operations):
    run = operations.deploy("2.1.0", shiftmaster_watch_seconds=3)
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(10) == "2.1.0"

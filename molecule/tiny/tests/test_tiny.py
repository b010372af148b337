"""Django and a database, deployed by variables alone: no Celery, no Redis, nothing under the names of ShiftMaster."""

from pathlib import Path

import pytest
from support import APP, Operations


@pytest.fixture(scope="module")
def operations():
    return Operations(Path(__file__).parent.parent / "inventory", "tiny-trixie")


def test_it_responds_with_its_version(operations):
    assert operations.shell("curl -skS https://localhost/").endswith("<footer>Tiny 1.0.0</footer>")
    health = operations.health()
    assert (health["status"], health["version"]) == ("healthy", "1.0.0")
    assert {name: check["status"] for name, check in health["checks"].items()} == {
        "database": "healthy", "cache": "healthy", "broker": "skipped", "worker": "skipped", "migrations": "healthy",
    }  # fmt: skip


def test_celery_and_redis_are_not_installed(operations):
    units = operations.shell("systemctl list-units --plain --no-legend --no-pager")
    assert "shiftmaster-web@" in units
    assert not any(word in units for word in ("shiftmaster-worker", "shiftmaster-beat", "redis"))
    assert operations.shell(f"ls {APP}/active/release/venv/bin/celery; command -v redis-server", check=False) == ""


def test_health_playbook_reads_its_own_names(operations):
    run = operations.run("playbooks/health.yml")
    assert run.code == 0, run.output[-4000:]
    assert run.prints("services healthy") and not run.prints("REDIS") and not run.prints("CELERY"), run.output[-4000:]


def test_upgrade_second_run_and_rollback(operations):
    run = operations.deploy("1.1.0", shiftmaster_watch_seconds=1)
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(10) == "1.1.0"
    again = operations.deploy("1.1.0")
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]
    run = operations.rollback()
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(10) == "1.0.0"


def test_units_and_boot(operations):
    assert operations.shell("systemctl --failed --no-legend").strip() == ""
    operations.reboot()
    assert operations.live_version(60) == "1.0.0"

"""An application as rough as the published ShiftMaster: deployed, upgraded and rolled back, its source untouched."""

import filecmp
import json
import re
import subprocess
from pathlib import Path

import pytest
from support import APP, PASSWORD, SCENARIO_HOME, Operations, load, wait_for

RELEASE = f"{APP}/active/release"
LEFT_OUT = ("docs", "pgdata", "staticfiles", "venv")


@pytest.fixture(scope="module")
def operations():
    operations = Operations(Path(__file__).parent.parent / "inventory", "rough-trixie")
    assert operations.live_version(60) == "1.0.0", "the host does not serve"
    operations.python(
        "from django.contrib.auth.models import User\n"
        f"User.objects.filter(username='demo').exists() or User.objects.create_user('demo', password='{PASSWORD}')"
    )
    return operations


def code(operations, url: str) -> str:
    return operations.shell(f"curl -skS -o /dev/null -w '%{{http_code}}' '{url}'")


def test_pages_are_served_over_tls_and_on_the_local_listener(operations):
    """Neither 500 for every host name nor a redirect to itself."""
    assert code(operations, "https://localhost/login/") == "200"
    assert code(operations, "http://localhost:8000/health/") == "200"
    assert code(operations, "http://localhost/login/") == "301"
    assert code(operations, "https://localhost/static/css/%E5%8B%A4%E5%8B%99%E8%A1%A8.css") == "200"


def test_the_source_is_as_it_was_published(operations, tmp_path):
    """The release holds the tag's files, byte for byte, but for what was left out and the directory that is linked."""
    archive = subprocess.run(
        ["git", "--git-dir", SCENARIO_HOME / "rough.git", "archive", "1.0.0"], check=True, capture_output=True
    ).stdout
    for directory in ("published", "deployed"):
        (tmp_path / directory).mkdir()
    subprocess.run(["tar", "-x", "-C", tmp_path / "published"], input=archive, check=True)
    with subprocess.Popen(
        ["docker", "exec", operations.host, "tar", "-c", "--exclude=__pycache__", "-C", f"{RELEASE}/source", "."],
        stdout=subprocess.PIPE,
    ) as packed:
        subprocess.run(["tar", "-x", "-C", tmp_path / "deployed"], stdin=packed.stdout, check=True)
    found = differences(filecmp.dircmp(tmp_path / "published", tmp_path / "deployed", ignore=[]))
    assert found == ([*LEFT_OUT], ["logs", "temp_exports"], [])


def differences(compared) -> tuple:
    """Return what only the left and only the right directory has, and what differs, with everything below."""
    left, right = sorted(compared.left_only), sorted(compared.right_only)
    same, differ, unreadable = filecmp.cmpfiles(compared.left, compared.right, compared.common_files, shallow=False)
    differ = differ + unreadable
    for below in compared.subdirs.values():
        for mine, its in zip((left, right, differ), differences(below)):
            mine += its
    return left, right, differ


def appears(operations, text: str, path: str) -> None:
    wait_for(lambda: text in operations.shell(f"cat {path}"), 30, f"{text} in {path}")


def test_its_log_is_in_the_shared_directory_in_its_own_format(operations):
    assert operations.shell(f"readlink -f {RELEASE}/source/logs").strip() == f"{APP}/shared/logs"
    assert code(operations, "https://localhost/nothing/") == "404"
    appears(operations, "Not Found: /nothing/", f"{APP}/shared/logs/django.log")
    assert re.search(r"^WARNING \d{4}-", operations.shell(f"cat {APP}/shared/logs/django.log"), re.M)


def test_it_exports_below_its_own_source_by_a_link_and_a_page_of_it_is_broken(operations):
    requested = operations.python(
        "from django.contrib.auth.models import User\nfrom django.test import Client\n"
        "client = Client(raise_request_exception=False)\nclient.force_login(User.objects.get(username='demo'))\n"
        "pages = ('/export/', '/statistics/')\n"
        "print([client.get(page, secure=True, HTTP_HOST='localhost').status_code for page in pages])"
    )
    assert "[200, 500]" in requested
    assert operations.shell(f"readlink -f {RELEASE}/source/shifts/temp_exports").startswith(f"{APP}/shared/")


def test_its_task_runs(operations):
    operations.python("from shifts.tasks import send_notice; send_notice.delay('夜勤の交代')")
    appears(operations, "notice: 夜勤の交代", "/var/log/shiftmaster/celery.log")


def test_all_processes_share_one_secret_key(operations):
    """A session survives a restart of the application."""
    keys = {operations.python("from django.conf import settings; print(settings.SECRET_KEY)") for _ in range(2)}
    assert len(keys) == 1 and len(keys.pop().strip()) >= 50


def test_health_is_supplied_and_knows_every_part(operations):
    checks = operations.health()["checks"]
    assert {name: check["status"] for name, check in checks.items()} == dict.fromkeys(
        ["database", "cache", "broker", "worker", "migrations"], "healthy"
    )
    run = operations.run("playbooks/health.yml")
    assert run.code == 0, run.output[-4000:]


def test_upgrade_and_rollback_under_load(operations, capsys):
    with load(operations, "--clients", "32", "--think-seconds", "1.0", seconds=400, scenario="rough.json") as current:
        run = operations.deploy("1.1.0", shiftmaster_watch_seconds=5)
        assert run.code == 0, run.output[-6000:]
        assert operations.live_version(10) == "1.1.0"
        run = operations.rollback()
        assert run.code == 0, run.output[-6000:]
        assert operations.live_version(10) == "1.0.0"
    with capsys.disabled():
        print(f"\n{json.dumps({key: current.summary[key] for key in ('requests', 'failed')})}")
    current.assert_flawless()


def test_a_second_run_changes_nothing(operations):
    run = operations.deploy("1.0.0")
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]


def test_the_failing_migration_is_named_first_without_its_hook(operations):
    """On an empty host and database. Nothing is half done, and with the hook the same host is deployed."""
    operations.shell(
        f"systemctl stop shiftmaster; rm -rf {APP}/* /var/backups/shiftmaster/*; "
        "runuser -u postgres -- dropdb --force shiftmaster"
    )
    run = operations.run("deploy.yml", shiftmaster_hooks=[])
    assert run.code == 2, run.output[-4000:]
    message = run.output[run.output.index("Abort | Fail with the reason") :]
    assert "shifts.0003_shift_note_again" in message and "already exists" in message, message[:3000]
    assert operations.live_version() == ""
    rows = operations.shell(
        "runuser -u postgres -- psql -At shiftmaster -c \"SELECT name FROM django_migrations WHERE app = 'shifts'\""
    )
    assert rows.split() == ["0001_initial", "0002_shift_note"]
    assert operations.state()["transition"] is None
    run = operations.run("deploy.yml", shiftmaster_watch_seconds=1)
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(10) == "1.0.0"

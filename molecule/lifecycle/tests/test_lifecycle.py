"""What an administrator changes within two years, as docs/guide/22-changes.md describes it."""

from __future__ import annotations

import json
import shutil

from support import APP, ROOT, Operations

FACT = "/etc/ansible/facts.d/shiftmaster.fact"
STATE = f"{APP}/shared/state/state.json"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMq1hM9TmM8lq1zBt3oXJ0G3oJ3C8z5k0u8YcXv2l6xQ kato"
NEW, FORMER = "shift.example.test", "former.example.test"
DOMAIN = {"shiftmaster_domain": NEW, "topology_former_domains": [FORMER]}
ZONE = {"base_timezone": "Europe/Helsinki"}


def request(operations, name: str) -> str:
    """Status and target of a redirect, over the address that users reach: the loopback serves any name."""
    address = operations.shell("hostname -I").split()[0]
    return operations.shell(
        f"curl -sko /dev/null -w '%{{http_code}} %{{redirect_url}}' --resolve {name}:443:{address} https://{name}/health/"
    ).strip()


def test_a_later_version_of_this_repository_lists_its_actions_and_is_recorded(operations, tmp_path):
    """With a made-up 1.1.0; the domain's test then runs this version again, under the same installation."""
    known = json.loads(operations.shell(f"cat {FACT}"))
    assert known["version"] == "1.0.0", "the complete run of scenario default has left it"
    later = Operations(operations.inventory, operations.host)
    later.root = tmp_path / "later"
    shutil.copytree(ROOT, later.root, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".cache", "logs"))
    changelog = later.root / "CHANGELOG.md"
    added = "## [1.1.0] - 2027-01-01\n\n### Added\n\n- **A variable**: is new. Action: set it.\n\n## [1.0.0]"
    changelog.write_text(changelog.read_text().replace("## [1.0.0]", added, 1))
    run = later.run("deploy.yml", "--check", "--tags", "base")
    assert run.code == 0 and run.prints("from 1.0.0", "to 1.1.0", "Action: set it."), run.output[-3000:]
    assert json.loads(operations.shell(f"cat {FACT}")) == known, "a check records nothing"
    run = later.run("deploy.yml")
    assert run.code == 0 and operations.live_version(30) == "2.0.0", run.output[-3000:]
    assert json.loads(operations.shell(f"cat {FACT}"))["version"] == "1.1.0"


def test_the_state_of_a_later_version_is_rejected_and_stays(operations):
    before = operations.shell(f"cat {STATE}")
    operations.shell(f'sed -i \'s/"format": 1/"format": 2/\' {STATE}')
    try:
        run = operations.deploy("2.1.0")
        assert run.code == 2 and run.prints("has the format 2"), run.output[-3000:]
        assert operations.shell(f"cat {STATE}") != before and operations.live_version(30) == "2.0.0"
    finally:
        operations.shell(f"cat > {STATE}", stdin=before)


def test_a_colleague_comes_and_leaves(operations):
    entry = {"name": "kato", "sudo": True, "authorized_keys": [KEY]}
    run = operations.run("deploy.yml", "--tags", "base", base_admin_users=[entry])
    assert run.code == 0, run.output[-3000:]
    assert operations.shell("su - kato -c 'sudo -n id -un'").strip() == "root"
    operations.shell("systemd-run --quiet --collect --uid=kato sleep 1000; echo data > /home/kato/file")
    run = operations.run("deploy.yml", "--tags", "base", base_admin_users=[{**entry, "state": "absent"}])
    assert run.code == 0, run.output[-3000:]
    assert operations.shell(
        "id kato 2>/dev/null; pgrep -fc 'sleep 100[0]'; stat -c %U:%a /home/kato", check=False
    ).split() == [
        "0",
        "root:700",
    ]
    history = operations.shell("shiftmasterctl history")
    assert "granted kato" in history and "revoked kato" in history


def test_administrators_of_the_application_are_granted_and_disabled(operations):
    operations.python(
        "from django.contrib.auth import get_user_model as u\n"
        "for name in ('sato', 'kato'): u().objects.create_user(name, password='a-test-1')"
    )
    assert "kato" in operations.shell("shiftmasterctl administrators grant kato").split()
    assert "sato" in operations.shell("shiftmasterctl administrators grant sato").split()
    assert "kato" not in operations.shell("shiftmasterctl administrators disable kato").split()
    active = "from django.contrib.auth import get_user_model as u; print(u().objects.get(username='kato').is_active)"
    assert operations.python(active).strip() == "False"
    assert "application: disable kato" in operations.shell("shiftmasterctl history")


def test_scheduled_tasks_run_and_mark_their_success(operations):
    task = {"command": "clearsessions", "calendar": "03:10", "max_age_hours": 26}
    tasks = [{"name": "clear", **task}, {"name": "broken", **task, "command": "nosuchcommand"}]
    run = operations.run("deploy.yml", "--tags", "app", shiftmaster_scheduled_tasks=tasks)
    assert run.code == 0, run.output[-3000:]
    operations.shell("touch -d @1000 /var/lib/shiftmaster-tasks/*; systemctl start shiftmaster-task-clear")
    operations.shell("systemctl start shiftmaster-task-broken", check=False)
    ages = operations.shell("stat -c '%n %Y' /var/lib/shiftmaster-tasks/*").split()
    assert dict(zip(ages[::2], ages[1::2], strict=True))["/var/lib/shiftmaster-tasks/broken"] == "1000"
    assert int(ages[3]) > 1000
    bad = operations.run(
        "deploy.yml", "--tags", "app", shiftmaster_scheduled_tasks=[{"name": "x", **task, "calendar": "25:99"}]
    )
    assert bad.code == 2 and bad.changed == 0 and bad.prints("x: systemd does not know the time"), bad.output[-3000:]
    gone = [{"name": name, "state": "absent"} for name in ("clear", "broken")]
    run = operations.run("deploy.yml", "--tags", "app", shiftmaster_scheduled_tasks=gone)
    assert run.code == 0, run.output[-3000:]
    assert (
        operations.shell("find /etc/systemd /var/lib/shiftmaster-tasks -name '*-task-*' -o -name clear -o -name broken")
        == ""
    )
    assert operations.shell("systemctl list-units --all --no-legend 'shiftmaster-task-*'") == ""


def test_the_domain_and_the_time_zone_change_and_the_earlier_domain_leads_there(operations):
    run = operations.run("deploy.yml", "--tags", "release", **DOMAIN)
    assert run.code == 0, run.output[-3000:]
    assert operations.live_version(30) == "2.0.0", "nginx still leads there by the earlier name"
    run = operations.run("deploy.yml", **DOMAIN, **ZONE)
    assert run.code == 0, run.output[-3000:]
    assert operations.shell("readlink /etc/localtime").strip() == "/usr/share/zoneinfo/Europe/Helsinki"
    zone = operations.python("from django.conf import settings; print(settings.TIME_ZONE)").strip()
    assert zone == ZONE["base_timezone"]
    assert request(operations, NEW).split()[0] == "200"
    status, target = request(operations, FORMER).split()
    assert status == "301" and target.startswith(f"https://{NEW}") and target.endswith("/health/")
    assert json.loads(operations.shell(f"cat {FACT}"))["version"] != "1.1.0", "a complete run records its version"
    again = operations.run("deploy.yml", **DOMAIN, **ZONE)
    assert again.code == 0 and again.changed == 0, again.output[-3000:]


def test_an_uninstalled_application_comes_back_on_its_data(operations):
    rows = operations.python("from django.contrib.auth import get_user_model as u; print(u().objects.count())").strip()
    operations.shell("echo plan > /var/www/shiftmaster/shared/media/plan.txt")
    before = operations.fingerprint()
    for code, extra in ((0, {}), (2, {"confirm": NEW}), (2, {"confirm": "another", "backup": "none"})):
        run = operations.run("playbooks/uninstall.yml", **DOMAIN, **extra)
        assert run.code == code and run.prints("Nothing was changed"), run.output[-3000:]
    assert operations.fingerprint() == before
    run = operations.run("playbooks/uninstall.yml", **DOMAIN, confirm=NEW, backup="none")
    assert run.code == 0, run.output[-3000:]
    assert operations.shell("ls -d /etc/systemd/system/shiftmaster.service /var/www/shiftmaster/releases || true") == ""
    assert (
        operations.shell("systemctl --failed --no-legend; systemctl is-active nginx postgresql redis-server").split()
        == ["active"] * 3
    )
    assert '"uninstalled"' in operations.shell("tail -n 1 /var/www/shiftmaster/shared/state/audit.jsonl")
    run = operations.run("deploy.yml", **DOMAIN)
    assert run.code == 0, run.output[-3000:]
    assert operations.live_version(60) == "2.0.0"
    assert operations.shell("cat /var/www/shiftmaster/shared/media/plan.txt").strip() == "plan"
    after = operations.python("from django.contrib.auth import get_user_model as u; print(u().objects.count())").strip()
    assert after == rows

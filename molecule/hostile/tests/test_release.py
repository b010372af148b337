"""A release whose dependency, settings, static files and processes attack the host: nothing is gained.

The first test deploys it; those that follow let root come by what it has planted.
"""

from __future__ import annotations

import json
import re

import pytest
from support import APP

CANARY = "CANARY-of-root"
HOOK_SECRET = "SECRET-of-a-hook"
# State that no release may change: files, their owners and modes, and links. Files of an ordinary run are left out.
FINGERPRINT = r"""
find /root /etc /usr/local /var/spool /boot /home -xdev \
  \( -path /root/.ansible -o -path /root/load -o -path /root/.cache -o -name cutover.json \) -prune -o \
  \( -type l -printf '%p -> %l\n' -o -type d -printf '%p %m %u %g\n' \
     -o -type f -printf '%p %m %u %g ' -exec sha256sum {} \; \) \
  | grep -v -e /etc/.pwd.lock -e /etc/ld.so.cache -e ' /etc/systemd/system/shiftmaster' | LC_ALL=C sort
"""


@pytest.fixture(scope="module")
def canary(operations):
    """Files of root that attacks aim at; returns a function that checks that they are as they were."""
    operations.shell(
        f"install -d -m 0700 /root/canary /root/.ssh && umask 077 && echo {CANARY} >/root/canary/key && "
        "echo '# none' >/root/.ssh/authorized_keys && for i in $(seq 40); do echo kept >/root/canary/2026$i.log; done"
    )
    before = operations.shell(FINGERPRINT, timeout=300)

    def check(*outputs: str) -> None:
        assert operations.shell(FINGERPRINT, timeout=300) == before
        shadow = operations.shell("grep ^root: /etc/shadow").strip()
        for output in outputs:
            assert CANARY not in output and shadow not in output and "PRIVATE KEY" not in output

    return check


def gained(operations, *contexts: str) -> tuple:
    """(number of attempts, those that gained something) of these contexts."""
    tried, found = 0, {}
    for context in contexts:
        places = f"{APP}/shared/media {APP}/releases/*/source {APP}/releases/*/source/dependency"
        text = operations.shell(f"for place in {places}; do cat $place/attack-{context}.json 2>/dev/null; done; true")
        assert text, f"the attack did not run in {context}"
        results = json.loads(text.partition("}")[0] + "}")
        tried += len(results)
        found |= {f"{context}: {name}": what for name, what in results.items() if what}
    return tried, found


@pytest.fixture(scope="module")
def attacked(operations, repository, canary):
    operations.shell(f"rm -f {APP}/shared/media/attack-*")
    operations.shell("rm -f /dev/shm/hostile-*")
    hook = {"name": "secret", "phase": "before_cutover", "command": f"sleep 1; true {HOOK_SECRET}"}
    return operations.deploy(
        "hostile-everything",
        shiftmaster_repository=repository,
        shiftmaster_extra_requirements=["./dependency"],
        shiftmaster_hooks=[hook],
    )


def test_code_of_a_release_gains_nothing_anywhere(operations, attacked, canary):
    assert attacked.code == 0, attacked.output[-4000:]
    tried, found = gained(operations, "build", "manage", "unit", "web", "worker")
    assert tried >= 5 * 40
    # Its own environment is what a release is given.
    assert not found, json.dumps(found, indent=1)
    canary(attacked.output)


def test_the_shared_memory_of_the_host_contains_nothing_of_it(operations, attacked):
    assert operations.shell("ls /dev/shm/hostile-* 2>/dev/null || true") == ""


def test_the_command_of_a_hook_is_not_in_the_journal(operations, attacked):
    assert operations.shell("journalctl --grep 'ShiftMaster: code' --lines 1 --quiet --output cat") != ""
    assert operations.shell(f"journalctl --quiet --output export | grep -a -c {HOOK_SECRET} || true").strip() == "0"


def test_builds_read_nothing_of_the_application(operations, attacked):
    """Sealed files are readable by all: the application needs no group for it."""
    assert operations.shell("id -Gn shiftmaster-build").split() == ["shiftmaster-build"]
    assert operations.shell(f"runuser -u shiftmaster -- find {APP}/current/ ! -name env ! -readable ! -type l") == ""


def test_background_processes_of_a_build_are_ended_and_its_files_belong_to_root(operations, attacked):
    assert operations.shell("pgrep -u shiftmaster-build || true") == ""
    odd = operations.shell(f"find {APP}/current/ \\( ! -user root -o -perm /6022 \\) ! -type l -print | head")
    assert odd == ""


def test_no_process_of_a_deploy_survives_it(operations, attacked):
    """The release's settings start one wherever manage.py or a driver loads them."""
    assert operations.shell("pgrep -u shiftmaster -f left-by-manage || true") == ""
    # Remaining processes of the application's user run in the sandbox of its units.
    units = operations.shell("ps -u shiftmaster -o unit=").split()
    assert units and all(re.fullmatch(r"shiftmaster-(web|worker|beat)@\w+\.service", unit) for unit in units), units


def test_a_build_leaves_no_file_for_the_next_one(operations, attacked):
    assert operations.shell("find / -xdev -user shiftmaster-build ! -path '/proc/*' -print | head") == ""
    assert operations.shell("find / -xdev -name 'django-99-*' -print 2>/dev/null | head") == ""


def test_the_web_process_cannot_replace_its_socket(operations, attacked):
    media = f"{APP}/shared/media"
    operations.shell(f"rm -f {media}/replaced-socket; runuser -u shiftmaster -- touch {media}/replace-socket")
    found = operations.shell(f"timeout 30 sh -c 'until cat {media}/replaced-socket 2>/dev/null; do sleep 0.2; done'")
    assert found == "PermissionError"
    assert operations.live_version(30) == "hostile-everything"


def test_the_web_process_writes_to_no_world_writable_directory(operations, attacked):
    enter = "nsenter -m -t $(systemctl show -P MainPID 'shiftmaster-web@*') setpriv --reuid shiftmaster --clear-groups"
    operations.shell(f"! {enter} --regid shiftmaster touch /run/lock/x 2>&1")


def test_a_slot_stops_without_an_error_and_starts_again(operations, attacked):
    """gunicorn removes its socket at its end."""
    operations.shell(": >/var/log/shiftmaster/error.log; systemctl stop shiftmaster && systemctl start shiftmaster")
    assert operations.shell("systemctl list-units --failed --plain --no-legend 'shiftmaster*'") == ""
    assert "Error" not in operations.shell("cat /var/log/shiftmaster/error.log")
    assert operations.live_version(60) == "hostile-everything"


@pytest.mark.parametrize(
    "command",
    [
        "logrotate --force /etc/logrotate.d/shiftmaster",
        "systemd-tmpfiles --create",
        "shiftmasterctl restart",
        "shiftmasterctl status",
        "systemctl restart shiftmaster",
    ],
)
def test_tools_of_root_do_not_follow_planted_files(operations, attacked, canary, command):
    output = operations.shell(f"timeout 100 {command} 2>&1 || [ $? -ne 124 ]", timeout=150)
    canary(output)
    assert operations.live_version(30) == "hostile-everything"


def test_a_link_in_media_publishes_no_file_of_another_owner(operations, attacked):
    """The web server may read what the application may not: its access log, for example."""
    media = f"{APP}/shared/media"
    operations.shell(
        f"runuser -u shiftmaster -- sh -c 'cd {media} && echo mine >own.txt && ln -sf own.txt own-link.txt && "
        "ln -sf /var/log/nginx/shiftmaster_access.log log.txt && ln -sfn / root && ln -sfn /etc etc'"
    )
    get = "curl -sk -o /dev/null -w '%{http_code} ' --resolve localhost:443:127.0.0.1 https://localhost/media/"
    paths = ("own.txt", "own-link.txt", "log.txt", "root/etc/hostname", "etc/hostname")
    codes = operations.shell("; ".join(get + path for path in paths)).split()
    operations.shell(f"cd {media} && rm -f own.txt own-link.txt log.txt root etc")
    assert codes == ["200", "200", "403", "403", "403"]


def test_a_log_with_a_second_name_is_rotated(operations, attacked):
    """logrotate would skip it, and it would grow until the disk is full."""
    media, log = f"{APP}/shared/media/second-name", "/var/log/shiftmaster/slow.log"
    operations.shell(f"echo x >>{log}; rm -f {media}; runuser -u shiftmaster -- ln {log} {media}")
    operations.shell("logrotate --force /etc/logrotate.d/shiftmaster")
    links = operations.shell(f"stat -c %h {log}; stat -c %h {media}; rm -f {media}").split()
    assert links == ["1", "2"]


@pytest.mark.parametrize("playbook", ["health.yml", "diagnose.yml", "checklist.yml"])
def test_reports_do_not_follow_planted_files(operations, attacked, canary, playbook):
    run = operations.run(f"playbooks/{playbook}", timeout=300)
    assert run.code in (0, 1, 2), run.output[-3000:]
    canary(run.output)


def test_the_next_deploy_does_not_follow_planted_files(operations, attacked, canary):
    run = operations.deploy("2.1.0", shiftmaster_keep_releases=1)
    assert run.code == 0, run.output[-4000:]
    canary(run.output)
    assert operations.live_version(30) == "2.1.0"


def test_processes_of_the_other_slot_that_a_version_suspends_are_resumed(operations, repository):
    """Its web processes stop those that serve, which have the same user, and fail the health gate."""
    before = operations.live_version(30)
    run = operations.deploy("hostile-stopping", shiftmaster_repository=repository)
    assert run.code == 2, run.output[-4000:]
    assert operations.live_version(30) == before
    assert "T" not in operations.shell("ps -u shiftmaster -o stat= | cut -c1")


def test_web_processes_that_never_end_do_not_stop_the_next_deploy(operations, repository):
    limits = {"shiftmaster_web_timeout_seconds": 15}
    run = operations.deploy(
        "hostile-endless",
        shiftmaster_repository=repository,
        shiftmaster_extra_requirements=["./dependency"],
        **limits,
    )
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(30) == "hostile-endless"
    run = operations.deploy("2.1.0", **limits)
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(30) == "2.1.0"
    # One slot runs, and none is on its way out.
    assert len(operations.shell("systemctl list-units --plain --no-legend 'shiftmaster-web@*'").splitlines()) == 1


@pytest.mark.sample("hostile-static-file")
@pytest.mark.parametrize("version", ["hostile-static-file", "hostile-static-directory"])
def test_a_link_among_the_static_files_is_rejected(operations, repository, canary, version):
    before = operations.live_version(30)
    run = operations.deploy(version, shiftmaster_repository=repository)
    assert run.code == 2 and run.prints("is a symbolic link"), run.output[-4000:]
    canary(run.output)
    assert operations.live_version() == before
    assert (
        operations.shell(f"find -L {APP}/shared/static {APP}/releases/*/static -name '*.key' -o -type l | head") == ""
    )


def test_a_sparse_static_file_fills_neither_memory_nor_disk(operations, repository, canary):
    before = operations.live_version(30)
    run = operations.deploy("hostile-static-sparse", shiftmaster_repository=repository)
    assert run.code == 2, run.output[-4000:]
    assert operations.live_version() == before
    assert operations.shell(f"find {APP} -name '*sparse.js*' | head") == ""


def test_static_files_of_a_version_that_fails_its_gate_are_not_published(operations, repository, canary):
    before = operations.live_version(30)
    run = operations.deploy("hostile-static-rejected", shiftmaster_repository=repository)
    assert run.code == 2, run.output[-4000:]
    assert operations.live_version() == before
    assert operations.shell(f"find {APP}/shared/static -name 'rejected*' | head") == ""
    get = (
        "curl -sk -o /dev/null -w '%{http_code}' --resolve localhost:443:127.0.0.1 https://localhost/static/rejected.js"
    )
    assert operations.shell(get) == "404"


def test_links_out_of_the_source_gain_nothing(operations, repository, canary):
    run = operations.deploy(
        "hostile-links", shiftmaster_repository=repository, shiftmaster_linked_directories=["a/ssl", "a/nginx"]
    )
    assert run.code == 2, run.output[-4000:]
    canary(run.output)


def test_a_log_that_is_a_link_is_not_quoted(operations, repository, canary):
    """The broken version's evidence comes from its logs; these lead to /etc/shadow, and one would block for ever."""
    run = operations.deploy("hostile-log", shiftmaster_repository=repository, shiftmaster_linked_directories=["logs"])
    assert run.code == 2, run.output[-4000:]
    canary(run.output, operations.shell(f"cat {APP}/shared/state/audit.jsonl"))
    assert operations.live_version(30)

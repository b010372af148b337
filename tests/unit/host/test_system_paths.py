"""Which directories variables may name for root to manage, and that every such variable is covered by the rule."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.shiftmaster.host import safe_files, system_paths

ROOT = Path(__file__).resolve().parents[3]
ROLES = [path.parent.parent.name for path in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml"))]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"plugins/action/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


variables = load("shiftmaster_variables")


@pytest.mark.parametrize(
    "path",
    (
        "/ // /etc /etc/ //etc /etc/nginx /usr /usr/lib/python3 /var /var/lib /var/log /var/www /var/backups /srv /opt"
        " /home /home/sato/app /root /tmp/x /var/tmp/x /dev/shm/x /proc/1 /run /run/systemd/x /boot/x /var/lib/dpkg"
        " /var/lib/postgresql/17/main /etc/ssl /etc/ssl/private /etc/ssl/certs/x /usr/local/share /var/www/../../etc"
        " /var/www/./x var/www/x"
    ).split()
    + [""],
)
def test_a_directory_of_the_system_is_refused(path):
    assert system_paths.refusal(path)


@pytest.mark.parametrize(
    "path",
    ["/var/www/shiftmaster", "/srv/shiftmaster", "/opt/shiftmaster", "/data", "/data/shiftmaster", "/mnt/disk/backups",
     "/var/lib/prometheus/node-exporter", "/run/shiftmaster-metrics", "/etcetera/x", "/etc/ssl/shiftmaster"],
)  # fmt: skip
def test_a_directory_of_its_own_is_accepted(path):
    assert system_paths.refusal(path) == ""


def specs():
    for role in ROLES:
        spec, defaults = (variables.load(role, name) for name in ("meta/argument_specs.yml", "defaults/main.yml"))
        for name, option in next(iter(spec["argument_specs"].values()))["options"].items():
            yield name, dict(option, default=defaults.get(name))


def test_every_default_is_accepted_and_what_is_left_out_exists():
    group_variables = yaml.safe_load((ROOT / "group_vars/all/preflight.yml").read_text(encoding="utf-8"))
    elsewhere, names = group_variables["preflight_other_directories"], dict(specs())
    assert set(elsewhere) <= set(names)
    defaults = {
        name: option.get("default")
        for name, option in names.items()
        if name.endswith(variables.DIRECTORY_ENDINGS) and name not in elsewhere and option["type"] in ("str", "path")
    }
    assert {
        "shiftmaster_root",
        "shiftmaster_log_dir",
        "shiftmaster_backup_dir",
        "backup_dir",
        "backup_scratch_dir",
    } <= set(defaults)
    wrong = {
        name: system_paths.refusal(path)
        for name, path in defaults.items()
        if path and "{{" not in path and system_paths.refusal(path)
    }
    assert wrong == {}


def test_the_rule_covers_what_the_site_chose_and_nothing_of_the_controller():
    options = {
        "x_root": {"type": "str"},
        "x_dir": {"type": "path"},
        "x_roots": {"type": "list"},
        "x_ca_dir": {"type": "str"},
    }
    values = {"x_root": "/etc", "x_dir": "/var/x", "x_roots": ["/etc"], "x_ca_dir": "/home/me/.secrets"}
    assert variables.directories_of(options, values, {"x_dir": "/var/x"}, ["x_ca_dir"]) == {"x_root": "/etc"}


def test_an_option_of_a_run_names_no_directory_of_the_system():
    options = load("shiftmaster_options")
    run_options = yaml.safe_load((ROOT / "group_vars/all/options.yml").read_text(encoding="utf-8"))["run_options"]
    into = run_options["restore"]["into"]
    for value in ("/etc", "/etc/", "/var/../etc", "/", "/usr/local"):
        assert options.refusal("into", into, value).startswith("into=%s " % value)
    for value in ("scratch", "here", "/srv/restored"):
        assert options.refusal("into", into, value) == ""


# Paths that another user could exchange: a directory above them is writable for this user.


@pytest.fixture
def trusted(tmp_path, monkeypatch):
    """A directory whose parents count as root's, so that the test depends on nothing above it."""
    tmp_path.chmod(0o755)
    known = {os.stat(parent).st_ino for parent in tmp_path.parents}
    real = safe_files.is_trusted
    monkeypatch.setattr(safe_files, "is_trusted", lambda status: status.st_ino in known or real(status))
    return tmp_path


def test_others_cannot_replace_files_of_root(trusted):
    (trusted / "a/b").mkdir(parents=True)
    assert safe_files.untrusted_parent(str(trusted / "a/b")) == ""
    assert safe_files.untrusted_parent(str(trusted / "a/not-there/either")) == ""


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_directory_that_others_write_to_is_found(trusted, mode):
    (trusted / "a/b/c").mkdir(parents=True)
    (trusted / "a").chmod(mode)
    assert safe_files.untrusted_parent(str(trusted / "a/b/c")) == str(trusted / "a")
    assert safe_files.untrusted_parent(str(trusted / "a/new")) == str(trusted / "a")
    # The last one is its owner's: a log directory belongs to a service.
    assert safe_files.untrusted_parent(str(trusted / "a")) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory away")
def test_a_directory_of_another_user_is_found(trusted):
    (trusted / "a/b").mkdir(parents=True)
    os.chown(trusted / "a", 1, 1)
    assert safe_files.untrusted_parent(str(trusted / "a/b")) == str(trusted / "a")


def test_links_are_resolved(trusted):
    (trusted / "open/x").mkdir(parents=True)
    (trusted / "open").chmod(0o777)
    (trusted / "way").symlink_to("open/x")
    (trusted / "round").symlink_to("nowhere/../open")
    (trusted / "loop").symlink_to("loop")
    assert safe_files.untrusted_parent(str(trusted / "way/y")) == str(trusted / "open")
    assert safe_files.untrusted_parent(str(trusted / "way")) == str(trusted / "open")
    assert safe_files.untrusted_parent(str(trusted / "loop/y")) == str(trusted / "loop")


def test_the_host_reports_it(trusted, run_module):
    spec = importlib.util.spec_from_file_location("preflight", ROOT / "library/release/shiftmaster_preflight.py")
    preflight = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(preflight)
    (trusted / "a").mkdir()
    (trusted / "a").chmod(0o777)
    report = preflight.Report()
    preflight.check_directories(
        report,
        [
            {"name": "shiftmaster_root", "path": str(trusted / "a/root")},
            {"name": "backup_dir", "path": str(trusted / "b")},
        ],
    )
    assert [(one["check"], one["problem"].partition(":")[0]) for one in report.findings] == [
        ("directories", f"shiftmaster_root={trusted}/a/root")
    ]

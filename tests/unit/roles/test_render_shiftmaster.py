"""The templates of role shiftmaster, rendered by Ansible."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.shiftmaster.release import releasecode, slots
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, lookup_loader
from ansible.template import Templar, trust_as_template
from rendered import trusted

ROLE = Path(__file__).resolve().parents[3] / "roles" / "shiftmaster"


def templar_of(variables):
    facts = {"processor_vcpus": 2, "distribution_major_version": "13"}
    known = {"ansible_managed": "Ansible managed", "ansible_facts": facts, "role_path": str(ROLE)}
    for part in ("defaults", "vars"):
        known |= yaml.safe_load((ROLE / part / "main.yml").read_text(encoding="utf-8"))
    loader = DataLoader()
    loader.set_basedir(str(ROLE))
    templar = Templar(loader, variables=trusted(known | variables))
    templar.environment.loader.searchpath = [str(ROLE / "templates")]
    return templar


def render(template, **variables):
    text = (ROLE / "templates" / template).read_text(encoding="utf-8")
    return templar_of(variables).template(trust_as_template(text))


ACTIVE = "/var/www/shiftmaster/active/release"


def trusted_value(name, **variables):
    return templar_of(variables).template(trust_as_template("{{ %s }}" % name))


def unit(template, **variables):
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    text = render(template, **variables)
    parser.read_string(text)
    return parser, text


@pytest.mark.parametrize("kind", ["web", "worker", "beat"])
def test_units_of_a_slot(kind):
    parser, text = unit(f"shiftmaster-{kind}@.service.j2")
    service = parser["Service"]
    assert "Install" not in parser, "a slot must not be enabled"
    assert service["EnvironmentFile"].endswith("env")
    assert service["User"] == "shiftmaster" and service["ProtectSystem"] == "strict"
    assert service["ReadWritePaths"].split() == ["/var/log/shiftmaster", "/var/www/shiftmaster/shared/media"]
    # The scheduler notes when it is due.
    assert "\nEnvironment=PROMETHEUS_MULTIPROC_DIR=/run/shiftmaster-metrics\n" in text
    assert "\nReadWritePaths=-/run/shiftmaster-metrics\n" in text
    assert "\nReadWritePaths=/var/log/shiftmaster /var/www/shiftmaster/shared/media\n" in text + "\n"


def test_linked_directories_can_be_written_to():
    parser, _text = unit("shiftmaster-web@.service.j2", shiftmaster_linked_directories=["logs", "media"])
    assert parser["Service"]["ReadWritePaths"].split()[1:] == [
        "/var/www/shiftmaster/shared/media", "/var/www/shiftmaster/shared/logs",
    ]  # fmt: skip


def test_mtail_can_read_gunicorns_log():
    """gunicorn gives it to its own group at each start, in which mtail is not."""
    _parser, text = unit("shiftmaster-web@.service.j2", shiftmaster_log_dir="/srv/log")
    # systemd-tmpfiles follows no link of the application's; chgrp did.
    assert "\nExecStartPost=-+/usr/bin/systemd-tmpfiles --create /etc/tmpfiles.d/shiftmaster.conf\n" in text


def settings(text):
    """(name, value) of each line of a unit."""
    return {tuple(line.split("=", 1)) for line in text.splitlines() if re.match(r"[A-Z]\w+=", line)}


@pytest.mark.parametrize("kind", ["code", "build"])
def test_code_of_a_release_runs_in_the_sandbox_of_its_units(kind):
    """The drop-in is found by the beginning of a transient unit's name, which releasecode.py gives it."""
    sandbox = settings(render("sandbox.j2"))
    service = settings(render("shiftmaster-web@.service.j2"))
    transient = settings(render("transient.conf.j2", kind=kind))
    assert len(sandbox) > 20
    assert sandbox <= service and sandbox <= transient
    # With several values the last one counts, or each of them.
    added = {name for name, _value in transient - sandbox} & {name for name, _value in sandbox}
    weaker = {"MemoryDenyWriteExecute"} if kind == "build" else {"ReadWritePaths"}
    assert added == weaker | {"InaccessiblePaths"}
    assert f"/etc/systemd/system/shiftmaster-{kind}-.service.d/sandbox.conf" in (ROLE / "vars/main.yml").read_text()
    assert '"shiftmaster-%s-%d-%d.service"' in Path(releasecode.__file__).read_text()


def test_a_unit_of_a_release_is_bounded():
    """Its memory, that of /dev/shm included, its processes, the size of a file; and the host's journal from it."""
    more = {"shiftmaster_build_memory_max": "3G", "shiftmaster_file_size_max": "5G"}
    for kind in ("code", "build"):
        found = settings(render("transient.conf.j2", kind=kind, **more))
        assert {("MemoryMax", "3G"), ("TasksMax", "1024"), ("LimitFSIZE", "5G"), ("LimitCORE", "0")} <= found
        assert {("PrivateIPC", "yes"), ("InaccessiblePaths", "-/run/systemd/notify")} <= found
        assert ("TemporaryFileSystem", "/dev/shm:mode=1777,size=64M,nosuid,nodev,noexec") in found
    for kind in ("web", "worker", "beat"):
        found = dict(settings(render(f"shiftmaster-{kind}@.service.j2", **more)))
        assert found["LimitFSIZE"] == "5G" and found["MemoryMax"] in ("1G", "512M")
        assert "/run/systemd/journal" in found["InaccessiblePaths"] and int(found["LogRateLimitBurst"]) <= 1000


def test_no_process_of_a_release_writes_to_world_writable_directories():
    """systemd leaves /run writable for a unit with ProtectProc=, regardless of ProtectSystem= (molecule/hostile)."""
    assert "-/run/lock" in dict(settings(render("sandbox.j2")))["InaccessiblePaths"].split()


def test_no_process_of_a_release_can_use_the_port_of_a_service():
    assert ("SocketBindDeny", "1-32767") in settings(render("sandbox.j2"))


@pytest.mark.parametrize("debian", ["12", "13"])
def test_code_of_a_release_cannot_stop_the_services(debian):
    """They have one user. systemd 252 ignores PrivatePIDs= with a warning; there they continue after the code's end."""
    facts = {"distribution_major_version": debian}
    found = dict(settings(render("transient.conf.j2", kind="code", ansible_facts=facts)))
    assert ("PrivatePIDs" in found) is (debian == "13")
    assert ("--signal=CONT" in found.get("ExecStopPost", "")) is (debian == "12")


def test_limits_of_stops_fit_into_each_other():
    """shiftmasterctl stops beat, worker and web one after the other."""
    more = {"shiftmaster_web_timeout_seconds": 500, "shiftmaster_celery_stop_timeout_seconds": 40}
    limits = {
        kind: int(dict(settings(render(f"shiftmaster{kind}.service.j2", **more)))["TimeoutStopSec"])
        for kind in ("", "-web@", "-worker@", "-beat@")
    }
    options = json.loads(render("cutover.json.j2", **more))
    assert (options["web_stop_seconds"], options["worker_stop_seconds"]) == (limits["-web@"], limits["-worker@"])
    total = sum(slots.stop_seconds(options, kind) for kind in ("web", "worker", "beat"))
    assert limits["-beat@"] < slots.stop_seconds(options, "beat")
    assert limits[""] >= total + 60


@pytest.mark.parametrize("queues, option", [([], ""), (["a", "b"], "-Q a,b")])
def test_queues_of_the_worker(queues, option):
    _parser, text = unit("shiftmaster-worker@.service.j2", shiftmaster_celery_queues=queues)
    assert f'Environment="SHIFTMASTER_QUEUES_OPTION={option}"' in text


def test_umbrella_is_enabled_and_goes_through_the_tool():
    parser, _text = unit("shiftmaster.service.j2")
    assert parser["Service"]["ExecStart"].endswith("shiftmasterctl unit-start")
    assert parser["Install"]["WantedBy"] == "multi-user.target"


def test_audit_events_are_sealed_before_the_logs_are_rotated():
    parser, _text = unit("shiftmaster-seal.service.j2")
    assert parser["Unit"]["Before"] == "logrotate.service"
    service = parser["Service"]
    assert service["ExecStart"] == "/usr/local/sbin/shiftmasterctl seal"
    assert (service["ReadWritePaths"], service["CapabilityBoundingSet"], service["PrivateNetwork"]) == (
        "/var/www/shiftmaster/shared/state", "CAP_DAC_READ_SEARCH", "yes",
    )  # fmt: skip
    assert json.loads(render("cutover.json.j2"))["audit_log"] == "/var/log/shiftmaster/audit.log"


def test_gunicorn_settings_are_python(monkeypatch):
    monkeypatch.setenv("SHIFTMASTER_SLOT", "green")
    text = render("gunicorn.conf.py.j2", shiftmaster_web_threads=7)
    found = {}
    exec(text.replace("from gunicorn import glogging", "").replace("glogging.Logger", "object"), found)
    assert (found["bind"], found["workers"], found["threads"]) == ("unix:/run/shiftmaster-web-green/web.sock", 3, 7)


def test_slow_requests_are_those_of_the_guide():
    """One second is information, two are a warning."""
    found = {}
    exec(compile(render("site_settings.py.j2", shiftmaster_settings_module="string"), "settings", "exec"), found)
    limits = (found["SHIFTMASTER_SLOW_REQUEST_INFO_SECONDS"], found["SHIFTMASTER_SLOW_REQUEST_WARNING_SECONDS"])
    assert limits == (1, 2)


def test_site_settings_follow_the_applications():
    text = render("site_settings.py.j2", shiftmaster_supply_health=True, shiftmaster_site_settings="ALLOWED_HOSTS = []")
    compile(text, "site_settings.py", "exec")
    assert (
        text.index("from shiftmaster.settings import *") < text.index("HealthMiddleware") < text.index("ALLOWED_HOSTS")
    )


def test_every_log_that_the_templates_name_is_created_by_root():
    """The application can create none in a directory of root."""
    named = set()
    for path in sorted((ROLE / "templates").iterdir()):
        named |= set(re.findall(r"shiftmaster_log_dir }}/([\w.-]+\.log)", path.read_text(encoding="utf-8")))
    made = render("tmpfiles.conf.j2", shiftmaster_log_files=["import.log"]).splitlines()
    files = {line.split()[1] for line in made if line.startswith("f ")}
    assert files == {f"/var/log/shiftmaster/{name}" for name in named | {"import.log"}}
    assert all(line.endswith(" 0640 shiftmaster adm") for line in made if line.startswith("f "))


@pytest.mark.parametrize("kind", ["web", "worker"])
def test_a_missing_directory_of_metrics_prevents_no_unit_from_starting(kind):
    _parser, text = unit(f"shiftmaster-{kind}@.service.j2")
    [line] = [line for line in text.splitlines() if line.startswith("ExecStartPre=")]
    assert line == "ExecStartPre=-+/usr/bin/systemd-tmpfiles --create /etc/tmpfiles.d/shiftmaster.conf"
    made = render("tmpfiles.conf.j2").splitlines()
    assert "d /run/shiftmaster-metrics 0750 shiftmaster shiftmaster" in made
    assert not any("metrics" in line for line in render("tmpfiles.conf.j2", shiftmaster_metrics=False).splitlines())
    _parser, text = unit(f"shiftmaster-{kind}@.service.j2", shiftmaster_metrics=False)
    assert "metrics" not in text and "METRICS" not in text and "PROMETHEUS" not in text


def test_metrics_are_attached_around_everything_else():
    text = render("site_settings.py.j2", shiftmaster_supply_health=True, shiftmaster_site_settings="MIDDLEWARE = []")
    compile(text, "site_settings.py", "exec")
    places = ["_attach.begin()", "from shiftmaster.settings import *", "MIDDLEWARE = []", "_attach.finish(globals())"]
    assert [text.index(place) for place in places] == sorted(text.index(place) for place in places)
    assert 'SHIFTMASTER_SLOW_LOG = "/var/log/shiftmaster/slow.log"' in text
    assert "attach" not in render("site_settings.py.j2", shiftmaster_metrics=False)
    assert "shiftmaster_monitoring" not in render("gunicorn.conf.py.j2", shiftmaster_metrics=False)
    conf = render("gunicorn.conf.py.j2")
    assert "def child_exit(server, worker):" in conf and '_ask(worker.wsgi, "/metrics", "ja")' in conf


def build(*names, **variables):
    """The hash that identifies a release's configuration covers its values."""
    known = {"ansible_managed": "Ansible managed", "ansible_facts": {"processor_vcpus": 2}, "role_path": str(ROLE)}
    for part in ("defaults", "vars"):
        known |= yaml.safe_load((ROLE / part / "main.yml").read_text(encoding="utf-8"))
    known["shiftmaster_build"] = {name: known["shiftmaster_build"][name] for name in names}
    loader = DataLoader()
    loader.set_basedir(str(ROLE))
    return Templar(loader, variables=trusted(known | variables)).template(trust_as_template("{{ shiftmaster_build }}"))


def test_requirements_of_the_metrics_are_part_of_the_release_and_its_hash():
    mine = {"shiftmaster_extra_requirements": ["gunicorn==27.0.1"]}
    with_them = build("environment", "extra_requirements", **mine)
    assert with_them["extra_requirements"] == [
        "gunicorn==27.0.1", "django-prometheus==2.5.0", "prometheus-client==0.26.0",
    ]  # fmt: skip
    assert with_them["environment"]["DJANGO_SETTINGS_MODULE"] == "shiftmaster_site_settings"
    assert with_them["environment"]["SHIFTMASTER_CELERY_APPLICATION"] == "shiftmaster"
    without = build("environment", "extra_requirements", **mine, shiftmaster_metrics=False)
    assert without["extra_requirements"] == ["gunicorn==27.0.1"]
    assert without["environment"]["DJANGO_SETTINGS_MODULE"] == "shiftmaster.settings"
    assert "SHIFTMASTER_CELERY_APPLICATION" not in without["environment"]
    newer = build(
        "environment", "extra_requirements", **mine, shiftmaster_metrics_requirements=["django-prometheus==2.5.1"]
    )
    assert newer["extra_requirements"] != with_them["extra_requirements"]


def test_the_monitoring_package_is_installed_into_the_release():
    if not lookup_loader.get("ansible.builtin.fileglob"):
        init_plugin_loader()
    package = ROLE.parents[1] / "shiftmaster_monitoring/shiftmaster_monitoring"
    texts = {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    wanted = {"site/shiftmaster_monitoring/" + path: text for path, text in texts.items()}
    on = build("files", shiftmaster_log_format="json")["files"]
    assert {path: text for path, text in on.items() if path.startswith("site/shiftmaster_monitoring/")} == wanted
    off = {"shiftmaster_supply_health": False, "shiftmaster_metrics": False, "shiftmaster_log_format": "application"}
    assert not set(build("files", **off)["files"]) & set(wanted)


def test_options_of_shiftmasterctl_are_those_of_the_module():
    found = json.loads(
        render("cutover.json.j2", shiftmaster_hooks=[{"name": "x", "phase": "after_build", "command": "true"}])
    )
    assert found["worker_stop_seconds"] == 300 and found["hooks"][0]["name"] == "x"
    assert found["logs"] == [
        "/var/log/shiftmaster/error.log", "/var/log/shiftmaster/app.log", "/var/www/shiftmaster/shared/logs/*.log",
    ]  # fmt: skip


def batches(hosts, sizes, operation="deploy", in_play=None):
    known = {"shiftmaster_hosts": hosts, "ansible_play_hosts_all": in_play or hosts, "shiftmaster_batches": sizes}
    known |= yaml.safe_load((ROLE.parent / "release/vars/main.yml").read_text(encoding="utf-8"))
    variables = trusted(known | {"shiftmaster_run": {"operation": operation}})
    return Templar(DataLoader(), variables=variables).template(trust_as_template("{{ __release_batches_of_hosts }}"))


@pytest.mark.parametrize(
    "count, sizes, lengths",
    [
        (1, [1, "25%"], [1]),
        (2, [1, "25%"], [1, 1]),
        (8, [1, "25%"], [1, 2, 2, 2, 1]),
        (5, ["100%"], [5]),
        (5, [2], [2, 2, 1]),
        (3, [1, "10%"], [1, 1, 1]),
        (4, ["50%", 1], [2, 1, 1]),
    ],
)
def test_batches_of_several_hosts(count, sizes, lengths):
    hosts = [f"app{number}" for number in range(count)]
    found = batches(hosts, sizes)
    assert [len(batch) for batch in found] == lengths
    assert [host for batch in found for host in batch] == hosts


def test_a_rollback_is_one_batch_without_hosts_outside_the_run():
    assert batches(["a", "b", "c"], [1], "rollback") == [["a", "b", "c"]]
    assert batches(["a", "b", "c"], [1], in_play=["a", "c"]) == [["a"], ["c"]]


def test_earlier_keys_are_accepted_in_addition_to_the_applications_own(monkeypatch):
    monkeypatch.setenv("SHIFTMASTER_SECRET_KEY_FALLBACKS", '["old"]')
    text = render("site_settings.py.j2", shiftmaster_secret_key_fallbacks=["old"]).replace(
        "from shiftmaster.settings import *", ""
    )
    session = "django.contrib.sessions.middleware.SessionMiddleware"
    text = text.split("# Last, so that")[0].replace("_attach.begin()", "")
    found = {"SECRET_KEY_FALLBACKS": ["older"], "MIDDLEWARE": ("first", session, "last")}
    exec(text, found)
    assert found["SECRET_KEY_FALLBACKS"] == ["older", "old"]
    assert found["MIDDLEWARE"] == ["first", session, "shiftmaster_key_rotation.KeepSessions", "last"]
    found = {"MIDDLEWARE": []}
    exec(text, found)
    assert found["SECRET_KEY_FALLBACKS"] == ["old"]
    assert "FALLBACKS" not in render("site_settings.py.j2")
    assert "old" not in text.split("import json")[1]


TASK = {
    "name": "clear-sessions",
    "command": "clearsessions --age 5%",
    "calendar": "Mon..Fri 03:10",
    "max_age_hours": 26,
}


def installed(**variables):
    return trusted_value("__shiftmaster_installed", **variables)


def test_a_scheduled_task_runs_in_the_sandbox_and_marks_its_success():
    wanted = {"shiftmaster_scheduled_tasks": [TASK], "shiftmaster_celery_beat": True}
    files = {one["path"]: one["content"] for one in installed(**wanted)["files"]}
    service = files["/etc/systemd/system/shiftmaster-task-clear-sessions.service"]
    lines = service.splitlines()
    # `active` may lead to another release before the task has imported everything; %% is a specifier of systemd.
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    assert "readlink -f ../venv" in start and start.endswith(" django clearsessions --age 5%%"), start
    assert "ExecStartPost=+/usr/bin/touch /var/lib/shiftmaster-tasks/clear-sessions" in lines
    assert f"ConditionPathExists={ACTIVE}/env" in lines
    # Where a page is up, on this host or on a web host.
    for name in ("maintenance/on", "state/background-held"):
        assert f"ConditionPathExists=!/var/www/shiftmaster/shared/{name}" in lines
    assert settings(render("sandbox.j2")) <= settings(service)
    timer = files["/etc/systemd/system/shiftmaster-task-clear-sessions.timer"]
    assert "OnCalendar=Mon..Fri 03:10" in timer.splitlines() and "Persistent=true" in timer.splitlines()
    assert json.loads(files["/etc/shiftmaster/tasks.json"]) == {"clear-sessions": 26}
    assert "f /var/lib/shiftmaster-tasks/clear-sessions 0644 root root" in files["/etc/tmpfiles.d/shiftmaster.conf"]
    build = trusted_value("shiftmaster_build", **wanted)["salt"]
    assert build == trusted_value("shiftmaster_build", shiftmaster_celery_beat=True)["salt"], "no new release for it"


@pytest.mark.parametrize(
    "variables",
    [
        {"shiftmaster_scheduled_tasks_here": False},
        {"shiftmaster_celery_beat": True, "shiftmaster_scheduled_tasks": [{"name": TASK["name"], "state": "absent"}]},
    ],
    ids=["another host", "absent"],
)
def test_a_task_that_is_not_wanted_here_leaves_nothing(variables):
    found = installed(**{"shiftmaster_scheduled_tasks": [TASK], **variables})
    assert not [one for one in found["files"] if "task" in one["path"]]
    assert {
        "/etc/shiftmaster/tasks.json",
        "/etc/systemd/system/shiftmaster-task-clear-sessions.service",
        "/etc/systemd/system/shiftmaster-task-clear-sessions.timer",
        "/etc/systemd/system/timers.target.wants/shiftmaster-task-clear-sessions.timer",
        "/var/lib/shiftmaster-tasks/clear-sessions",
    } <= set(found["absent"])

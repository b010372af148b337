"""The log that shiftmaster_monitoring writes: Django under gunicorn and Celery, with the role's own settings."""

from __future__ import annotations

import concurrent.futures
import http.cookies
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.shiftmaster.diagnosis import logs
from ansible.module_utils.shiftmaster.logging import ecs

pytest.importorskip("django", reason="Django is not installed; the step `package` runs these tests")
pytest.importorskip("gunicorn", reason="gunicorn is not installed; the step `package` runs these tests")

from monitored import Project  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
MASKS = yaml.safe_load((ROOT / "group_vars/all/masking.yml").read_text(encoding="utf-8"))["log_masks"]
ID = "0123456789abcdef0123456789abcdef"
KEY = "a key of pseudonyms"
SETTINGS = """
LOGGING = {
    "version": 1, "disable_existing_loggers": False,
    "formatters": {"own": {"format": "OWN %(message)s"}},
    "handlers": {
        "file": {"class": "logging.FileHandler", "filename": HERE / "django.log", "formatter": "own", "delay": True},
        "stderr": {"class": "logging.StreamHandler", "formatter": "own"},
        "nothing": {"class": "logging.NullHandler"},
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        "project": {"handlers": ["file", "stderr"], "level": "DEBUG", "propagate": False},
        "silent": {"handlers": ["nothing"], "propagate": False},
    },
}
"""
URLS = """
import logging
from django.contrib.auth import authenticate
from django.contrib.auth.models import Group, Permission, User
from django.db import connection

log = logging.getLogger("project.views")

def say(request, number):
    request.user.is_authenticated  # As login_required does.
    log.info("number %d, 患者番号：00123456", number, extra={"ward": "東3", "password": "hunter2", "thing": object()})
    logging.getLogger("silent").error("nobody hears this")
    log.debug("wrong %d", "arguments")
    return HttpResponse("printed")

def chain(request):
    try:
        try:
            {}["taro@example.jp"]
        except KeyError as error:
            raise ValueError("token=abcdef") from error
    except ValueError:
        log.exception("it failed")
    return HttpResponse("")

def long(request):
    log.info("x" * 30000 + " mail@example.jp" + "y" * 30000)
    return HttpResponse("")

def refuse(request):
    authenticate(request, username="nobody@example.jp", password="hunter2")
    return HttpResponse("")

def rights(request):
    request.user.is_authenticated
    user = User.objects.create_user("hanako", password="hunter2")
    group = Group.objects.create(name="head nurses")
    user.groups.add(group)
    user.is_staff = True
    user.save()
    user.groups.remove(group)
    user.delete()
    return HttpResponse("")

def groups(request):
    user = User.objects.create_user("hanako")
    group = Group.objects.create(name="head nurses")
    permission = Permission.objects.get(codename="delete_user")
    permission.group_set.add(group)
    group.user_set.add(user)
    group.user_set.clear()
    group.delete()
    return HttpResponse("")

class Silent:
    def __str__(self):
        raise RuntimeError("it reports nothing")

class Text(str):
    __str__ = Silent.__str__

def odd(request):
    log.info(Silent())
    log.info("number", extra={1: "a key that is no text", "odd": Text("odd")})
    for text in ("患者を更新" * 10000, "Update: " + "患者を更新" * 10000, '{"a":1,' * 10000):
        log.info(text)
    # Half of a secret stands at each end.
    log.info("あ" * 32760 + "taro@example.jp")
    try:
        raise ValueError("taro@example.jp" + "あ" * 65520)
    except ValueError:
        log.exception("it failed")
    return HttpResponse("")

urlpatterns += [
    path("groups/", groups), path("odd/", odd),
    path("say/<int:number>/", say), path("chain/", chain), path("long/", long), path("refuse/", refuse),
    path("rights/", rights),
]
"""


def make(directory, **variables):
    known = {
        "shiftmaster_log_format": "ecs",
        "shiftmaster_log_masks": MASKS,
        "shiftmaster_log_environment": "demo",
        "shiftmaster_site_settings": SETTINGS.replace("HERE", f"__import__('pathlib').Path({str(directory)!r})"),
        "shiftmaster_web_workers": 3,
        **variables,
    }
    project = Project(directory, **known)
    urls = directory / "project_urls.py"
    urls.write_text(urls.read_text() + URLS)
    project.environment["SHIFTMASTER_LOG_KEY"] = KEY
    return project


@pytest.fixture
def project(tmp_path):
    return make(tmp_path)


def events(path, logger=None):
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [event for event in found if logger is None or event["log"]["logger"] == logger]


def test_an_event_contains_its_source(project):
    with project.serve() as server:
        jar = http.cookies.SimpleCookie(server.request("/enter/taro/")[2]["Set-Cookie"])
        server.request("/say/7/?secret=1", X_Request_ID=ID, Cookie=f"sessionid={jar['sessionid'].value}")
        message = server.output()
    event, wrong = events(project.directory / "app.log", "project.views")
    assert re.match(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$", event.pop("@timestamp"))
    assert event["log"].pop("origin")["function"] == "say"
    assert event.pop("process")["pid"] > 1
    user = event["user"].pop("hash")
    assert re.match("^[0-9a-f]{20}$", user)
    assert event == {
        "log": {"level": "INFO", "logger": "project.views"},
        "message": "number 7, 患者番号：[patient]",
        "ecs": {"version": "8.11.0"}, "event": {"dataset": "shiftmaster.app"},
        "service": {"name": "shiftmaster", "version": "2.0.0", "environment": "demo"},
        "http": {"request": {"id": ID, "method": "GET"}}, "url": {"path": "/say/7/"}, "user": {},
        "labels": {
            "release": "20260101T000000Z-abcdef0", "slot": "blue", "route": "/say/<int:number>/",
            "extra": "ward=東3 password=[secret]",
        },
    }  # fmt: skip
    # The same one that the audit log has, and the command.
    assert [found["user"]["hash"] for found in events(project.directory / "audit.log")[1:]] == [user]
    assert project.python("from shiftmaster_monitoring import pseudonym; pseudonym.main(['1'])").startswith(user)
    assert wrong["message"].startswith("wrong %d [TypeError: ") and wrong["log"]["level"] == "DEBUG"
    assert "OWN" not in message and not (project.directory / "django.log").exists() and "nobody hears" not in message
    assert oct((project.directory / "app.log").stat().st_mode & 0o777) == "0o640"


def test_a_request_without_an_id_gets_one_and_a_bad_one_is_not_trusted(project):
    with project.serve() as server:
        for given in ({}, {"X_Request_ID": "x */ drop table"}, {"X_Request_ID": "a" * 65}):
            server.request("/say/1/", **given)
    ids = [event["http"]["request"]["id"] for event in events(project.directory / "app.log", "project.views")][::2]
    assert len(set(ids)) == 3 and all(re.match("^[0-9a-f]{32}$", found) for found in ids)


def test_an_exception_is_complete_and_masked(project):
    with project.serve() as server:
        server.request("/chain/")
    (event,) = events(project.directory / "app.log", "project.views")
    assert event["error"]["type"] == "ValueError" and event["error"]["message"] == "token=[secret]"
    trace = event["error"]["stack_trace"]
    assert "The above exception was the direct cause" in trace and "KeyError: '[mail]'" in trace
    assert "abcdef" not in (project.directory / "app.log").read_text().replace("abcdef0", "")
    # As the diagnosis and a deploy that fails read it.
    (problem,) = logs.problems(ecs.as_lines((project.directory / "app.log").read_text()), time.time() - 60)
    assert problem["exception"] == "ValueError: token=[secret]" and "project.views" in problem["text"], problem


WALL = """
import json, logging, sys
import django; django.setup()
from django.test import RequestFactory
from shiftmaster_monitoring import carry, logs

form = logs.formatter()

def made(text, *args, exc=None, extra=None):
    record = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, text, args, exc, "g", extra)
    return form.format(record)

def caught(raises):
    try:
        raises()
    except BaseException:
        return sys.exc_info()

def chained(text):
    try:
        raise KeyError(text)
    except KeyError as error:
        raise ValueError("x") from error

def group(text):
    raise ExceptionGroup("x", [ValueError(text)])

def plain(text):
    raise ValueError(text)

def in_request(text):
    def view(request):
        request.path = "/a/" + text
        return made("x")
    return carry.RequestContext(view)(RequestFactory().get("/"))

for line in open(SEEDS, encoding="utf-8"):
    text = json.loads(line)
    print(json.dumps({
        "message": made(text.replace("%", "%%"), *()) if "%" not in text else made("%s", text),
        "argument": made("an event: %s", text),
        "exception": made("x", exc=caught(lambda: plain(text))),
        "cause": made("x", exc=caught(lambda: chained(text))),
        "group": made("x", exc=caught(lambda: group(text))),
        "extra": made("x", extra={"told": text}),
        "path": in_request(text),
    }))
"""


def test_no_seeded_value_passes_the_first_mask_on_any_path(project):
    """Message, argument, exception, cause, group, extra and path, as the formatter of a release writes them."""
    seeded = [(mask["name"], line) for mask in MASKS for line in mask["must"]]
    texts = [line.replace("«", "").replace("»", "") for _name, line in seeded]
    (project.directory / "seeds.json").write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    program = WALL.replace("SEEDS", repr(str(project.directory / "seeds.json")))
    found = [json.loads(line) for line in project.python(program).splitlines() if line.startswith("{")]
    assert len(found) == len(seeded)
    left = []
    for (name, line), ways in zip(seeded, found):
        for way, event in ways.items():
            message = json.dumps(json.loads(event), ensure_ascii=False).replace("\\\\", "\\")
            left += [(name, way, value) for value in re.findall("«([^»]*)»", line) if value in message]
    assert left == []


def test_django_logs_failed_requests_to_the_same_log(project):
    with project.serve() as server:
        server.request("/boom/", X_Request_ID=ID)
        server.request("/nothing/taro@example.jp/")
    boom, missing = events(project.directory / "app.log", "django.request")
    assert boom["http"]["request"]["id"] == ID and boom["labels"]["extra"] == "status_code=500"
    assert boom["error"]["type"] == "ValueError" and boom["log"]["level"] == "ERROR"
    assert missing["message"] == "Not Found: /nothing/[mail]/" and missing["url"]["path"] == "/nothing/[mail]/"


def test_many_processes_write_complete_lines_over_a_rotation(project):
    log = project.directory / "app.log"
    with project.serve() as server:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: server.request(f"/say/{number}/"), range(40)))
            log.rename(log.with_suffix(".1"))
            list(pool.map(lambda number: server.request("/long/"), range(40)))
    first, second = events(log.with_suffix(".1"), "project.views"), events(log, "project.views")
    assert len(first) == 80 and len(second) == 40
    assert len({event["process"]["pid"] for event in second}) > 1
    assert all(event["message"].endswith(" [cut]") and len(event["message"]) < 33000 for event in second)
    assert "mail@" not in log.read_text()


def test_unwritable_events_go_to_standard_error(project):
    (project.directory / "app.log").mkdir()
    with project.serve() as server:
        assert server.request("/say/1/")[0] == 200
        message = server.output()
    assert "the log cannot be written" in message and "number 1" in message and "00123456" not in message


def test_an_event_without_a_message_is_an_event_and_a_long_one_is_not_lost(project):
    with project.serve() as server:
        assert server.request("/odd/")[0] == 200
    silent, number, *long, failed = events(project.directory / "app.log", "project.views")
    assert silent["message"] == "<Silent that cannot be printed: RuntimeError> [RuntimeError: it reports nothing]"
    assert number["labels"]["extra"] == "odd=<Text that cannot be printed: RuntimeError>"
    for event, begin in zip(long, ("患者を更新", "Update: 患者", '{"a":1,', "あ"), strict=True):
        assert event["message"].startswith(begin) and event["message"].endswith(" [cut]")
        assert 28000 < len(event["message"]) < 33000 and "taro" not in event["message"]
    assert failed["error"]["message"].startswith("[mail]あ") and failed["error"]["stack_trace"].endswith("あああ")
    assert "taro" not in failed["error"]["stack_trace"] and "example" not in failed["error"]["stack_trace"]


def test_a_full_disk_fails_no_request(project):
    """gunicorn's standard error is a file of the same disk."""
    program = """
import logging, sys
import django
django.setup()
from shiftmaster_monitoring import logs
class Full:
    def write(self, text):
        raise OSError(28, "No space left on device")
sys.stderr = Full()
log = logging.getLogger("project.full")
log.addHandler(logs.handler("/dev/full"))
log.propagate = False
log.error("it fits nowhere")
sys.stderr = sys.__stderr__
print("gone on")
"""
    assert "gone on" in project.python(program)


def test_a_line_that_the_disk_had_no_place_for_spoils_no_other(project):
    program = """
import json, logging, os
import django
django.setup()
from shiftmaster_monitoring import logs
found = logs.handler(os.environ["TORN"])
log = logging.getLogger("project.torn")
log.addHandler(found)
log.propagate = False
log.error("one")
write = found.stream.write
class Full:
    def write(self, line):
        return write(line[:20])
    def __getattr__(self, name):
        return getattr(stream, name)
stream, found.stream = found.stream, Full()
log.error("two")
found.stream = stream
log.error("three")
lines = open(os.environ["TORN"]).read().splitlines()
print(len(lines), json.loads(lines[0])["message"], len(lines[1]), json.loads(lines[2])["message"])
"""
    assert "3 one 20 three" in project.python(program, TORN=str(project.directory / "torn.log"))


def test_audit_events_of_groups(project):
    with project.serve() as server:
        server.request("/groups/")
    found = events(project.directory / "audit.log")
    reported = [event["message"].partition(": ")[2] for event in found if event["event"]["action"] == "rights-changed"]
    assert reported[0].startswith("group head nurses: added ") and reported[0].endswith(" | Can delete user")
    assert reported[1:] == ["added head nurses", "head nurses: all removed", "group head nurses deleted"]
    # A group's number identifies no user.
    assert ["target" in event.get("user", {}) for event in found] == [True, False, True, False, False]


def test_audit_events(project):
    with project.serve() as server:
        client = {"X_Real_IP": "203.0.113.9", "X_Request_ID": ID}
        jar = http.cookies.SimpleCookie(server.request("/enter/taro/", **client)[2]["Set-Cookie"])
        cookie = f"sessionid={jar['sessionid'].value}"
        server.request("/refuse/", **client)
        server.request("/rights/", Cookie=cookie)
        server.request("/leave/", Cookie=cookie)
    found = events(project.directory / "audit.log")
    reported = [(event["event"]["action"], event["event"]["outcome"], event["message"]) for event in found]
    assert reported == [
        ("user-created", "success", "user-created success"),
        ("login", "success", "login success"),
        ("login", "failure", "login failure"),
        ("user-created", "success", "user-created success"),
        ("rights-changed", "success", "rights-changed success: added head nurses"),
        ("user-changed", "success", "user-changed success: is_staff False -> True"),
        ("rights-changed", "success", "rights-changed success: removed head nurses"),
        ("user-deleted", "success", "user-deleted success"),
    ] + [("logout", "success", "logout success")]
    assert {event["event"]["dataset"] for event in found} == {"shiftmaster.audit"}
    assert found[1]["source"] == {"ip": "203.0.113.9"} and found[1]["http"]["request"]["id"] == ID
    me = found[1]["user"]["hash"]
    # Changes of rights, with their author.
    assert {event["user"].get("hash") for event in found[3:]} == {me}
    other = found[3]["user"]["target"]["hash"]
    assert other != me and {event["user"]["target"]["hash"] for event in found[3:8]} == {other}
    assert not re.search("taro|hanako|nobody|hunter2", (project.directory / "audit.log").read_text())


def test_the_application_can_log_the_lines_of_the_guide(tmp_path):
    project = make(tmp_path, shiftmaster_log_format="plain")
    with project.serve() as server:
        server.request("/say/7/")
        server.request("/chain/")
    lines = (tmp_path / "app.log").read_text(encoding="utf-8").splitlines()
    assert re.match(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \[INFO\] project.views: number 7, 患者番号：\[patient\]$", lines[0]
    )
    assert "KeyError: '[mail]'" in lines and "ValueError: token=[secret]" in lines


def test_without_it_the_application_logs_unchanged(tmp_path):
    project = make(tmp_path, shiftmaster_log_format="application")
    with project.serve() as server:
        server.request("/say/7/")
        message = server.output()
    assert "OWN number 7, 患者番号：00123456" in message
    assert not (tmp_path / "app.log").exists() and not (tmp_path / "audit.log").exists()


def test_without_metrics_too(tmp_path):
    project = make(tmp_path, shiftmaster_metrics=False)
    with project.serve() as server:
        server.request("/say/7/")
        assert server.request("/metrics")[0] == 404
    assert len(events(tmp_path / "app.log", "project.views")) == 2


def test_without_the_packages_of_the_metrics(tmp_path):
    """A release without metrics has none of their packages, and Celery searches for tasks in every application."""
    pytest.importorskip("celery", reason="Celery is not installed; the step `package` runs these tests")
    (tmp_path / "project_celery.py").write_text(
        "from celery import Celery\napp = Celery('project')\napp.autodiscover_tasks(['shiftmaster_monitoring'])\n"
    )
    project = make(tmp_path, shiftmaster_metrics=False, shiftmaster_celery_application="project_celery")
    project.python(
        """
        import sys
        sys.modules["prometheus_client"] = sys.modules["django_prometheus"] = None
        import django; django.setup()
        import project_celery
        project_celery.app.loader.import_default_modules()
        assert "shiftmaster_monitoring.tasks" in sys.modules
        """,
        SHIFTMASTER_CELERY_APPLICATION="project_celery",
    )


def test_management_commands_do_not_log_to_the_application_log(project):
    text = project.python("import django; django.setup(); import logging; logging.getLogger('project').info('hello')")
    assert text == "" and not (project.directory / "app.log").exists()
    assert "OWN hello" in (project.directory / "django.log").read_text()


def test_gunicorns_own_log_is_masked(project):
    with project.serve() as server:
        (project.directory / "project_wsgi.py").write_text("raise RuntimeError('password=hunter2')\n")
        os.kill(server.workers()[0], signal.SIGKILL)
        deadline = time.monotonic() + 20
        while "RuntimeError" not in server.output() and time.monotonic() < deadline:
            time.sleep(0.1)
        message = server.output()
    # What it prints next to its log, when a module cannot be imported, is masked by the second mask.
    assert "RuntimeError: password=[secret]" in message and "RuntimeError: password=hunter2" not in message


def test_statements_to_postgresql_begin_with_the_request_id(project):
    """Django's wrappers of statements are real here, the database is not: scenario `logging` uses a real one."""
    project.python("""
        import django; django.setup()
        from django.db import connection
        from django.test import RequestFactory
        from shiftmaster_monitoring import carry

        def view(request):
            with connection.cursor() as cursor:
                cursor.execute("SELECT %s", [1])
            return "answer"

        printed = []
        def last(execute, sql, params, many, context):
            printed.append(sql)
            return execute(sql, params, many, context)

        connection.ensure_connection()
        assert carry.comment not in connection.execute_wrappers  # SQLite has no log.
        connection.execute_wrappers.append(last)
        connection.vendor = "postgresql"
        carry.connected(connection)
        carry.connected(connection)
        assert connection.execute_wrappers.count(carry.comment) == 1
        request = RequestFactory().get("/", HTTP_X_REQUEST_ID="abc-1")
        assert carry.RequestContext(view)(request) == "answer" and carry.current() is None
        view(request)
        assert printed == ["/* request_id=abc-1 */ SELECT %s", "SELECT %s"], printed
    """)


CELERY = """
import logging
from celery import Celery
from celery.utils.log import get_task_logger
app = Celery("project")
app.conf.update(
    broker_url="filesystem://", worker_hijack_root_logger=True,
    broker_transport_options={
        "data_folder_in": DIRECTORY, "data_folder_out": DIRECTORY, "control_folder": DIRECTORY + "-control",
    },
)

@app.task
def first():
    get_task_logger("tasks").info("first, mail to taro@example.jp")
    second.delay()

@app.task
def second():
    logging.getLogger("project.tasks").warning("second")
"""


# As Celery's documentation has it for Django, and the example application does.
OWN_SETUP = """
from celery.signals import setup_logging

@setup_logging.connect
def use_django_logging(**_):
    import logging.config
    from django.conf import settings
    logging.config.dictConfig(settings.LOGGING)
"""


@pytest.mark.parametrize("own", ["", OWN_SETUP], ids=["celery's own log", "set up by the application"])
def test_tasks_carry_the_request_id_on(tmp_path, own):
    pytest.importorskip("celery", reason="Celery is not installed; the step `package` runs these tests")
    (tmp_path / "queue").mkdir()
    (tmp_path / "project_celery.py").write_text(CELERY.replace("DIRECTORY", repr(str(tmp_path / "queue"))) + own)
    settings = SETTINGS.replace("HERE", f"__import__('pathlib').Path({str(tmp_path)!r})") + "\nimport project_celery\n"
    project = make(tmp_path, shiftmaster_celery_application="project_celery", shiftmaster_site_settings=settings)
    urls = tmp_path / "project_urls.py"
    urls.write_text(
        urls.read_text()
        + "import project_celery\n"
        + "urlpatterns += [path('send/', lambda request: HttpResponse(str(project_celery.first.delay())))]\n"
    )
    log = tmp_path / "celery.log"
    command = ["-m", "celery", "-A", "project_celery", "worker", "--concurrency=2", "--loglevel=INFO"]
    command += [f"--logfile={log}", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    environment = {**project.shared(), "SHIFTMASTER_CELERY_APPLICATION": "project_celery"}
    output = open(tmp_path / "worker.out", "w", encoding="utf-8")
    worker = subprocess.Popen([sys.executable, *command], env=environment, cwd=tmp_path, stdout=output, stderr=output)
    try:
        with project.serve(SHIFTMASTER_CELERY_APPLICATION="project_celery") as server:
            assert server.request("/send/", X_Request_ID=ID)[0] == 200, server.output()
        project.python("import project_celery; project_celery.second.delay()", **environment)  # Without a request.
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (log.exists() and log.read_text().count("succeeded") == 3):
            assert worker.poll() is None
            time.sleep(0.2)
    finally:
        worker.terminate()
        worker.wait(60)
        output.close()
    found = events(log)
    tasks = [event for event in found if event["log"]["logger"] in ("tasks", "project.tasks")]
    tasks.sort(key=lambda event: event["message"])  # The broker of files hands messages out in any order.
    assert [event["message"] for event in tasks] == ["first, mail to [mail]", "second", "second"]
    assert [event["labels"]["task"] for event in tasks] == ["project_celery.first", "project_celery.second"] + [
        "project_celery.second"
    ]
    # The two that came second have no order between them; one has no request, and carries its own id.
    carried = [event["http"]["request"]["id"] for event in tasks]
    own = [event["labels"]["task_id"] for event in tasks[1:] if event["http"]["request"]["id"] != ID]
    assert carried[0] == ID and len(own) == 1 and sorted(carried[1:]) == sorted([ID, *own])
    # The worker's own lines are of the same form, and each is there once.
    assert sum("succeeded" in event["message"] for event in found) == 3

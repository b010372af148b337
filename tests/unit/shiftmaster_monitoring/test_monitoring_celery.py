"""The metrics of Celery's tasks, workers and queues, with real workers and a real Redis."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("django", reason="Django is not installed; the step `package` runs these tests")
pytest.importorskip("django_prometheus", reason="django-prometheus is not installed; see the step `package`")
pytest.importorskip("celery", reason="Celery is not installed; see the step `package`")
redis = pytest.importorskip("redis", reason="redis is not installed; see the step `package`")

from monitored import Project, total, value  # noqa: E402

CELERY = """
import os, signal, time
from celery import Celery
app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")

@app.task
def add(a, b):
    return a + b

@app.task
def fail():
    raise ValueError("no")

@app.task
def sleep(seconds):
    time.sleep(seconds)

@app.task
def die():
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(bind=True, max_retries=2)
def again(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a Redis: that of scripts/with_services, or one of our own."""
    given = os.environ.get("SHIFTMASTER_TEST_REDIS_URL")
    if given:
        yield given
        return
    if not shutil.which("redis-server"):
        pytest.skip("there is no Redis (SHIFTMASTER_TEST_REDIS_URL, or redis-server)")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    child = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    yield f"redis://127.0.0.1:{port}/0"
    child.terminate()
    child.wait(20)


@pytest.fixture
def client(server):
    found = redis.Redis.from_url(server)
    deadline = time.monotonic() + 20
    while True:
        try:
            found.flushdb()
            break
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield found
    found.flushdb()
    found.close()


@pytest.fixture
def project(tmp_path, server, client):
    (tmp_path / "project_celery.py").write_text(CELERY)
    return Project(
        tmp_path,
        shiftmaster_celery_queues=["celery", "reports"],
        shiftmaster_celery_application="project_celery",
        shiftmaster_site_settings=f"import project_celery\nCELERY_BROKER_URL = {server!r}\n"
        f"CELERY_RESULT_BACKEND = {server!r}\nCELERY_TASK_ACKS_LATE = True\n"
        # The worker shows when it is ready.
        "LOGGING['disable_existing_loggers'] = False\n",
    )


@contextlib.contextmanager
def worker(project, *arguments, name="w1"):
    log = project.directory / f"{name}.log"
    with open(log, "a", encoding="utf-8") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "project_celery", "worker", "-n", f"{name}@%h", "--loglevel=INFO",
             "--concurrency=2", "--without-gossip", "--without-mingle", *arguments],
            env=dict(project.shared(), C_FORCE_ROOT="1"), cwd=project.directory, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while " ready." not in log.read_text():
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def call(project, text, **environment):
    """Send tasks as a web process does; return what is printed."""
    return project.python(
        "import django; django.setup()\nfrom project_celery import *\n" + text, **{**project.shared(), **environment}
    )


def until(project, wanted, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        metrics = project.scrape()
        if wanted(metrics) or time.monotonic() > deadline:
            return metrics
        time.sleep(0.3)


def tasks(metrics, name, state):
    return value(metrics, "shiftmaster_celery_tasks_total", task=f"project_celery.{name}", state=state) or 0


def test_tasks_by_state_with_processes_that_are_recycled(project):
    with worker(project, "--max-tasks-per-child=3", "-Q", "celery,reports"):
        metrics = project.scrape()
        assert value(metrics, "shiftmaster_celery_tasks_total", task="project_celery.fail", state="FAILURE") == 0
        assert value(metrics, "shiftmaster_celery_workers") == 1
        call(project, """
for _ in range(20): add.delay(1, 2)
for _ in range(3): fail.delay()
again.delay()
sleep.apply_async((0.3,), queue="reports")
""")  # fmt: skip
        metrics = until(project, lambda found: tasks(found, "add", "SUCCESS") >= 20 and tasks(found, "again", "SUCCESS")
                        and tasks(found, "sleep", "SUCCESS") and tasks(found, "fail", "FAILURE") >= 3)  # fmt: skip
        assert tasks(metrics, "add", "SUCCESS") == 20 and tasks(metrics, "fail", "FAILURE") == 3
        assert (tasks(metrics, "again", "RETRY"), tasks(metrics, "again", "SUCCESS")) == (2, 1)
        name = "shiftmaster_celery_task_duration_seconds"
        assert value(metrics, name + "_count", task="project_celery.add") == 20
        assert 0.3 <= value(metrics, name + "_sum", task="project_celery.sleep") < 5
        wait = "shiftmaster_celery_task_wait_seconds_count"
        assert value(metrics, wait, queue="celery") == 20 + 3 + 3 and value(metrics, wait, queue="reports") == 1
        assert value(metrics, "shiftmaster_celery_queue_length", queue="celery") == 0
        assert value(metrics, "shiftmaster_celery_queue_oldest_task_age_seconds", queue="celery") == 0
        # Ten processes have come and gone.
        assert len(list(project.metrics.glob("*.db"))) <= 4
    metrics = project.scrape()
    assert tasks(metrics, "add", "SUCCESS") == 20 and value(metrics, "shiftmaster_celery_workers") == 0


def test_a_task_of_a_killed_process_has_failed(project):
    with worker(project):
        call(project, "add.delay(1, 1); die.delay()")
        metrics = until(project, lambda found: tasks(found, "die", "FAILURE") and tasks(found, "add", "SUCCESS"))
        assert tasks(metrics, "die", "FAILURE") == 1 and tasks(metrics, "add", "SUCCESS") == 1
        call(project, "add.delay(1, 1)")
        assert tasks(until(project, lambda found: tasks(found, "add", "SUCCESS") > 1), "add", "SUCCESS") == 2


def test_revoked_and_unknown_tasks(project, client):
    call(project, """
add.apply_async((1, 1), expires=0.1)
app.send_task("nobody.knows.%d" % os.getpid())
""")  # fmt: skip
    time.sleep(0.3)
    with worker(project):
        metrics = until(project, lambda found: tasks(found, "add", "REVOKED"))
    assert tasks(metrics, "add", "REVOKED") == 1
    assert value(metrics, "shiftmaster_celery_tasks_total", task="(other)", state="REJECTED") == 1
    assert not any("nobody" in label for _name, labels in metrics for _key, label in labels)


def test_a_deploys_canary_is_no_work(project):
    with worker(project, "-Q", "celery,shiftmaster.canary.host.blue"):
        call(project, """
app.send_task("celery.accumulate", args=("x",), queue="shiftmaster.canary.host.blue")
add.delay(1, 1)
""")  # fmt: skip
        metrics = until(project, lambda found: tasks(found, "add", "SUCCESS"))
        time.sleep(1)
        metrics = project.scrape()
    assert total(metrics, "shiftmaster_celery_task_wait_seconds_count") == 1
    assert total(metrics, "shiftmaster_celery_tasks_total", task="celery.accumulate") == 0


def test_wait_counts_from_when_a_task_is_to_start(project):
    with worker(project):
        call(project, "add.apply_async((1, 1), countdown=2)")
        metrics = until(project, lambda found: tasks(found, "add", "SUCCESS"))
    assert value(metrics, "shiftmaster_celery_task_wait_seconds_sum", queue="celery") < 1.9


def test_a_killed_worker_is_no_worker_after_a_while(project):
    with worker(project) as child:
        assert value(project.scrape(), "shiftmaster_celery_workers") == 1
        deadline = time.monotonic() + 20
        [beat] = (project.metrics / "workers").iterdir()
        first = beat.stat().st_mtime
        while beat.stat().st_mtime == first:
            assert time.monotonic() < deadline, "no sign of life"
            time.sleep(0.3)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        os.utime(beat, (0, time.time() - 31))
        assert value(project.scrape(), "shiftmaster_celery_workers") == 0


# --- the scheduler ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def beat(project, numbers):
    """A scheduler that sends a task each second; sets cannot be sent."""
    with open(project.directory / "shiftmaster_site_settings.py", "a", encoding="utf-8") as stream:
        entry = "{'task': 'project_celery.add', 'schedule': 1.0, 'args': (%s, 1)}" % numbers
        stream.write("\nCELERY_BEAT_SCHEDULE = {'add': %s}\n" % entry)
    child = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "project_celery", "beat", "--schedule=schedule", "--pidfile="],
        env=project.shared(), cwd=project.directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def due(metrics):
    return value(metrics, "shiftmaster_celery_beat_due_timestamp_seconds") or 0


def test_a_scheduler_that_works_is_always_due_about_now(project, client):
    with beat(project, "1") as child:
        began = time.time()
        metrics = until(project, lambda found: due(found) > began and client.llen("celery") > 2, 120)
        assert due(metrics) >= time.time() - 5 and client.llen("celery") > 2
        os.kill(child.pid, signal.SIGSTOP)
        stopped = time.time()
        time.sleep(1.5)
        assert 0 < due(project.scrape()) < stopped + 1.5
    assert due(project.scrape()) == 0


def test_a_scheduler_that_cannot_send_what_is_due_stays_due(project, client):
    with beat(project, "{1}"):
        due_at = due(until(project, due, 120))
        time.sleep(3)
        assert 0 < due(project.scrape()) <= due_at + 1 and client.llen("celery") == 0


# --- the broker ------------------------------------------------------------------------------------------------------


def test_length_and_age_of_what_waits(project, client):
    call(project, """
import time
from shiftmaster_monitoring import tasks
moment = time.time()
time.time = lambda: moment - 300
add.delay(1, 1)
time.time = lambda: moment - 60
for _ in range(4): add.delay(1, 1)
add.apply_async((1, 1), queue="reports", priority=6)
add.apply_async((1, 1), queue="reports")
""")  # fmt: skip
    assert sorted(name for name in client.keys() if b"kombu" not in name) == [
        b"celery",
        b"reports",
        b"reports\x06\x166",
    ]
    metrics = project.scrape()
    assert value(metrics, "shiftmaster_celery_queue_length", queue="celery") == 5
    assert value(metrics, "shiftmaster_celery_queue_length", queue="reports") == 2
    assert value(metrics, "shiftmaster_celery_queue_oldest_task_age_seconds", queue="celery") == pytest.approx(
        300, abs=20
    )
    assert value(metrics, "shiftmaster_celery_queue_oldest_task_age_seconds", queue="reports") == pytest.approx(
        60, abs=20
    )
    assert value(metrics, "shiftmaster_metrics_collector_up", collector="celery") == 1
    # Nothing was taken out.
    assert client.llen("celery") == 5
    # The oldest goes first.
    client.rpop("celery")
    metrics = project.scrape()
    assert value(metrics, "shiftmaster_celery_queue_oldest_task_age_seconds", queue="celery") == pytest.approx(
        60, abs=20
    )


def test_tasks_of_others_age_from_when_they_are_first_seen(project, client):
    client.lpush("celery", json.dumps({"headers": {"id": "x"}}), "not JSON")
    out = call(project, """
import time
from shiftmaster_monitoring import queues
first = queues.measure(5)["queues"]["celery"]
time.sleep(0.5)
print(first[0], round(first[1]), queues.measure(5)["queues"]["celery"][1] >= 0.5)
""")  # fmt: skip
    assert out.split() == ["2", "0", "True"]


@pytest.mark.parametrize("fault", ["refuses", "hangs"])
def test_a_broker_that_does_not_respond_costs_a_timestamp(project, fault):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if fault == "hangs":
            listener.listen(16)
        url = f"redis://:hunter2x@127.0.0.1:{listener.getsockname()[1]}/0"
        (project.directory / "shiftmaster_site_settings.py").write_text(
            (project.directory / "shiftmaster_site_settings.py")
            .read_text()
            .replace("_attach.finish", f"CELERY_BROKER_URL = {url!r}\n_attach.finish")
        )
        out = call(project, """
import time
from shiftmaster_monitoring.exposition import Exposition
from shiftmaster_monitoring import trouble
exposition = Exposition()
exposition.text(warming=True)
assert not trouble._reported
for _ in range(2):
    began = time.monotonic()
    text = exposition.text().decode()
    assert time.monotonic() - began < 4.5, time.monotonic() - began
assert "hunter2x" not in text and len(trouble._reported) == 1
print(text)
""")  # fmt: skip
    from monitored import parse

    metrics = parse(out)
    assert value(metrics, "shiftmaster_metrics_collector_up", collector="celery") == 0
    assert value(metrics, "shiftmaster_metrics_shared_up") == 1
    assert value(metrics, "shiftmaster_celery_queue_length", queue="celery") is None
    assert value(metrics, "shiftmaster_celery_workers") == 0


def test_hosts_that_share_a_cache_count_a_user_once(tmp_path, server, client):
    """Two hosts, distinguished by their names and directories."""
    projects = []
    for host in ("app1", "app2"):
        (tmp_path / host).mkdir()
        projects.append(Project(
            tmp_path / host,
            shiftmaster_site_settings='CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", '
            f'"LOCATION": {server!r}}}}}',
        ))  # fmt: skip
    text = """
import django; django.setup()
import os
os.uname = lambda: type("U", (), {"nodename": os.environ["HOST"]})
from shiftmaster_monitoring import people
people._touch("users", people._hash("user", "both"))
people._touch("users", people._hash("user", os.environ["HOST"]))
people.active_on_all_hosts(1)
for path in (os.environ["PROMETHEUS_MULTIPROC_DIR"] + "/topology.json",): os.unlink(path)
print(people.active_on_all_hosts(1)["windows"])
"""
    projects[0].python(text, **projects[0].shared(), HOST="app1")
    found = [
        project.python(text, **project.shared(), HOST=f"app{2 - at}") for at, project in enumerate(reversed(projects))
    ]
    assert [line.strip() for line in found] == ["{'5m': 3, '1h': 3}"] * 2
    # No name of a user, and gone by themselves.
    keys = client.keys("*shiftmaster*")
    assert len(keys) == 3 and all(0 < client.ttl(key) <= 3600 for key in keys)

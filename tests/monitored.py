"""A small Django project with the metrics attached as role shiftmaster does it, and processes that serve it."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "shiftmaster_monitoring"
ROLE = ROOT / "roles" / "shiftmaster"

SETTINGS = """
import os
from pathlib import Path
HERE = Path(__file__).parent
SECRET_KEY = "a-key"
ALLOWED_HOSTS = ["localhost"]
ROOT_URLCONF = "project_urls"
INSTALLED_APPS = ("django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions")
MIDDLEWARE = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(HERE / "db.sqlite3")}}
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
LOGGING = {"version": 1, "disable_existing_loggers": True}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""
URLS = """
import os, time
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import path, re_path

def sleep(request, ms):
    time.sleep(ms / 1000)
    return HttpResponse("slept")

def boom(request):
    raise ValueError("boom")

def enter(request, name):
    login(request, User.objects.get_or_create(username=name)[0], backend="django.contrib.auth.backends.ModelBackend")
    return HttpResponse("in")

def leave(request):
    logout(request)
    return HttpResponse("out")

urlpatterns = [
    path("", lambda request: HttpResponse("the application")),
    path("items/<int:number>/", lambda request, number: HttpResponse(str(number)), name="item"),
    path("sleep/<int:ms>/", sleep),
    path("boom/", boom),
    path("me/", lambda request: HttpResponse(str(request.user))),
    path("enter/<name>/", enter),
    path("leave/", leave),
    path("pid/", lambda request: HttpResponse(str(os.getpid()))),
    re_path(r"^old/(?P<x>[a-z]+)$", lambda request, x: HttpResponse(x)),
]
"""
WSGI = """
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
"""


def render(template, **variables):
    known = {"ansible_managed": "Ansible managed", "ansible_facts": {"processor_vcpus": 2}}
    for part in ("defaults", "vars"):
        known |= yaml.safe_load((ROLE / part / "main.yml").read_text(encoding="utf-8"))
    trusted = {
        name: trust_as_template(value) if isinstance(value, str) else value
        for name, value in (known | variables).items()
    }
    templar = Templar(DataLoader(), variables=trusted)
    return templar.template(trust_as_template((ROLE / "templates" / template).read_text(encoding="utf-8")))


class Project:
    """A project, with the files that role shiftmaster installs next to it, and processes that serve it."""

    def __init__(self, directory: Path, **variables):
        self.directory, self.running = directory, []
        self.metrics = directory / "metrics"
        self.metrics.mkdir()
        self.log = directory / "slow.log"
        for name, text in (("project_settings", SETTINGS), ("project_urls", URLS), ("project_wsgi", WSGI)):
            (directory / f"{name}.py").write_text(text)
        known = {
            "shiftmaster_settings_module": "project_settings",
            "shiftmaster_wsgi_application": "project_wsgi:application",
            "shiftmaster_supply_health": True,
            "shiftmaster_log_dir": str(directory),
            "shiftmaster_web_workers": 4,
            "shiftmaster_web_threads": 2,
            **variables,
        }
        (directory / "shiftmaster_site_settings.py").write_text(render("site_settings.py.j2", **known))
        self.gunicorn = render("gunicorn.conf.py.j2", **known)
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "PYTHONPATH": os.pathsep.join([str(directory), str(PACKAGE), os.environ.get("PYTHONPATH", "")]),
            "DJANGO_SETTINGS_MODULE": "shiftmaster_site_settings",
            "SHIFTMASTER_VERSION": "2.0.0",
            "SHIFTMASTER_RELEASE": "20260101T000000Z-abcdef0",
        }
        self.django("migrate", "-v", "0")

    def django(self, *arguments):
        subprocess.run([sys.executable, "-m", "django", *arguments], env=self.environment, check=True, timeout=120)

    def python(self, text, **environment):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(text)], env={**self.environment, **environment},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shared(self, slot="blue"):
        """Return the environment of the units' processes."""
        return {**self.environment, "SHIFTMASTER_SLOT": slot, "PROMETHEUS_MULTIPROC_DIR": str(self.metrics)}

    def scrape(self, **environment):
        """Return what a scrape gets, without a server."""
        return parse(
            self.python(
                "import django; django.setup()\n"
                "from shiftmaster_monitoring.exposition import Exposition\n"
                "print(Exposition().text().decode())",
                **{**self.shared(), **environment},
            )
        )

    @contextlib.contextmanager
    def serve(self, slot="blue", more="", **environment):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        conf = self.directory / f"gunicorn-{slot}.py"
        conf.write_text(
            self.gunicorn
            + f'\nbind = "127.0.0.1:{port}"\nerrorlog = "-"\nworker_tmp_dir = None\ncapture_output = False\n{more}\n'
        )
        output = open(self.directory / f"{slot}.log", "a", encoding="utf-8")
        child = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--config", str(conf)],
            env={
                **self.environment, "SHIFTMASTER_SLOT": slot, "PROMETHEUS_MULTIPROC_DIR": str(self.metrics),
                **environment,
            },
            cwd=self.directory, stdout=output, stderr=output,
        )  # fmt: skip
        server = Server(port, child, self.directory / f"{slot}.log")
        try:
            server.wait()
            yield server
        finally:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            output.close()


class Server:
    def __init__(self, port, child, log):
        self.port, self.child, self.log = port, child, log

    def output(self):
        return self.log.read_text(encoding="utf-8")

    def wait(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.child.poll() is None, self.output()
            with contextlib.suppress(OSError):
                if self.request("/health/")[0] == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(self.output())

    def request(self, path, method="GET", **headers):
        """Return (status, text, headers) of one request over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers={"Host": "localhost", **headers})
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers
        finally:
            connection.close()

    def sure(self, path, **headers):
        """Query until a process responds: a request of a killed process is repeated. Returns how many responded."""
        for _ in range(50):
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.request(path, **headers)
                return 1
            time.sleep(0.05)
        return 0

    def metrics(self):
        status, text, headers = self.request("/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4"), text
        return parse(text)

    def workers(self):
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.child.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]


def parse(text):
    from prometheus_client.parser import text_string_to_metric_families

    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} comes twice"
            found[key] = sample.value
    return found


def value(metrics, name, **labels):
    return metrics.get((name, frozenset(labels.items())))


def total(metrics, name, **labels):
    """Return the sum of all series of a name with these labels."""
    return sum(
        number for (found, have), number in metrics.items() if found == name and frozenset(labels.items()) <= have
    )


def count(metrics, route, method="GET"):
    return value(metrics, "django_request_duration_seconds_count", route=route, method=method) or 0

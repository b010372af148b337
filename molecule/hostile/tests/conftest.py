"""Hostile versions, built on 2.1.0 of the example."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support import REPOSITORY, SCENARIO_HOME, operations_of

operations = operations_of(__file__)
ATTACK = Path(__file__).parent.parent / "files" / "attack.py"
BACKEND = """
import os, subprocess, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/..")
import attack
attack.run("build")
release = os.path.realpath("..") + "/.."
for name in ("site/gunicorn.conf.py", "site/.gunicorn.conf.py.new", "env", "manifest.json", "manifest.json.new"):
    try:
        os.symlink("/root/canary/key", os.path.join(release, name))
    except OSError:
        pass
# It outlives pip, and would go on changing files of the finished release.
subprocess.Popen(["setsid", "sh", "-c", "exec 3>>../late; while sleep 0.1; do echo x >&3; done"],
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def build_wheel(directory, config_settings=None, metadata_directory=None):
    import zipfile
    name = "hostile-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        wheel.writestr("hostile.py", "")
        wheel.writestr("hostile-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: hostile\\nVersion: 1.0\\n")
        wheel.writestr("hostile-1.0.dist-info/WHEEL",
                       "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("hostile-1.0.dist-info/RECORD", "")
    return name
"""
COLLECTSTATIC = """
import os
from django.conf import settings
from django.contrib.staticfiles.management.commands import collectstatic


class Command(collectstatic.Command):
    def handle(self, **options):
        super().handle(**options)
        os.chdir(settings.STATIC_ROOT)
        {line}
"""
# A file that a build keeps for the next one: a wheel that it would install.
CACHE = """
for place in (os.environ.get("PIP_CACHE_DIR"), "/var/cache/shiftmaster/pip", "/var/tmp"):
    try:
        os.makedirs(place + "/wheels", exist_ok=True)
        open(place + "/wheels/django-99-py3-none-any.whl", "w").close()
    except (OSError, TypeError):
        pass
"""
LEAVE = """
if "SHIFTMASTER_SLOT" not in __import__("os").environ:
    attack.leave("left-by-manage")
"""
SOCKET = """
import threading

threading.Thread(target=attack.replace_socket, daemon=True).start()
"""
CALL = "\nimport attack\n\nattack.run({context})\n"
LEAK = """
import os
for name in ("app.log", "zzz.log"):
    os.symlink("/etc/shadow", os.path.join(BASE_DIR, "logs", name))
os.mkfifo(os.path.join(BASE_DIR, "logs", "fifo.log"))
"""


# A gunicorn that does not end, and gets more time of systemd again and again.
ENDLESS = """
def _more():
    import os, socket, time
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"EXTEND_TIMEOUT_USEC=90000000", os.environ["NOTIFY_SOCKET"])
        time.sleep(5)


__import__("threading").Thread(target=_more, daemon=True).start()
Arbiter.handle_term = lambda self: None
"""
PATCH = f"""
import glob, os
(path,) = glob.glob(os.path.realpath("../..") + "/venv/lib/*/site-packages/gunicorn/arbiter.py")
with open(path, "a") as stream:
    stream.write({ENDLESS!r})
"""


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def dependency(root: Path, more: str) -> None:
    shutil.copy(ATTACK, root / "attack.py")
    (root / "dependency").mkdir()
    (root / "dependency" / "backend.py").write_text(BACKEND + more)
    (root / "dependency" / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )


def everything(root: Path) -> None:
    dependency(root, CACHE)
    append(
        root / "shiftmaster" / "settings.py",
        CALL.format(context='"manage" if "SHIFTMASTER_SLOT" not in __import__("os").environ else "unit"') + LEAVE,
    )
    append(root / "shiftmaster" / "wsgi.py", CALL.format(context='"web"') + SOCKET)
    append(root / "shiftmaster" / "celery.py", CALL.format(context='"worker"'))


def endless(root: Path) -> None:
    dependency(root, PATCH)


def stopping(root: Path) -> None:
    shutil.copy(ATTACK, root / "attack.py")
    append(root / "shiftmaster" / "wsgi.py", "\nimport attack\n\nattack.stop_others()\nimport that_does_not_exist\n")


def collectstatic(line: str):
    def change(root: Path) -> None:
        commands = root / "roster" / "management" / "commands"
        (commands / "collectstatic.py").write_text(COLLECTSTATIC.format(line=line))
        # Django uses the command of the first application of two with the same name.
        append(root / "shiftmaster" / "settings.py", 'INSTALLED_APPS.sort(key=lambda name: name != "roster")\n')

    return change


def rejected_files(root: Path) -> None:
    """Static files of a version that fails its gate."""
    (root / "static" / "rejected.js").write_text("alert(1)\n")
    append(root / "shiftmaster" / "wsgi.py", "\nimport that_does_not_exist\n")


def outside_links(root: Path) -> None:
    (root / "a").symlink_to("/etc")
    (root / "static" / "shadow").symlink_to("/etc/shadow")


def leaking_log(root: Path) -> None:
    append(root / "shiftmaster" / "settings.py", LEAK)
    append(root / "shiftmaster" / "wsgi.py", "\nimport that_does_not_exist\n")


VERSIONS = {
    "hostile-everything": everything,
    "hostile-static-file": collectstatic('os.symlink("/etc/ssl/private/shiftmaster.key", "site.js")'),
    "hostile-static-directory": collectstatic('os.symlink("/etc/ssl/private", "keys")'),
    "hostile-static-sparse": collectstatic('open("sparse.js", "w").truncate(1 << 40)'),
    "hostile-static-rejected": rejected_files,
    "hostile-endless": endless,
    "hostile-stopping": stopping,
    "hostile-links": outside_links,
    "hostile-log": leaking_log,
}


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """The example's repository with the hostile versions as tags."""
    work, bare = tmp_path_factory.mktemp("hostile") / "work", SCENARIO_HOME / "hostile.git"

    def git(*words):
        identity = ("-c", "user.name=Attacker", "-c", "user.email=attacker@shiftmaster.invalid")
        subprocess.run(["git", *identity, *words], check=True, capture_output=True)

    git("clone", "--quiet", str(REPOSITORY), str(work))
    for tag, change in VERSIONS.items():
        git("-C", str(work), "checkout", "--quiet", "--force", "2.1.0")
        git("-C", str(work), "clean", "-dfxq")
        change(work)
        (work / "VERSION").write_text(f"{tag}\n")
        git("-C", str(work), "add", "--all", "--force")
        git("-C", str(work), "commit", "--quiet", "--message", tag)
        git("-C", str(work), "tag", tag)
    shutil.rmtree(bare, ignore_errors=True)
    git("clone", "--quiet", "--mirror", str(work), str(bare))
    return str(bare)

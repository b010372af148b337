"""Celery as the cutover needs it. Runs inside a release: its source is handed to the release's interpreter.

The application's name is in SHIFTMASTER_CELERY_APPLICATION. Requests are one line of JSON each; every response is one
line that starts with "@@shiftmaster-response@@ ":

    {"op": "tasks"}                                       {"tasks": [names that this release knows], "queues": [names]}
    {"op": "ping", "worker": name, "seconds": n}          {"alive": bool}
    {"op": "canary", "worker": name, "queue": q, ...}     {"ran": bool, "stored": bool}: one task went through the
                                                          broker and ran; its result came back
    {"op": "consume", "worker": name, "queues": [...]}    {"confirmed": bool}
    {"op": "cancel", "worker": name, "queues": [...]}     {"confirmed": bool}
    {"op": "quarantine", "queues": [...], "directory": path, "all": bool}
                                                          {"quarantined": [{"id", "task", "queue"}], "more": bool}
    {"op": "replay", "directory": path, "after": name}    {"replayed": [{"id", "task", "queue"}], "unreadable": number,
                                                          "next": name}: with it as `after` the files that are left

Every version writes to the broker and to the directory of quarantined tasks. A file or an entry that is no task there
stops no other version.
"""

import json
import os
import re
import stat
import sys
import time
import uuid

RESPONSE = "@@shiftmaster-response@@ "
# The form of each response (releasecode.matches).
_TASK = {"task": (str, None), "id": (str, None), "queue": str}
RESPONSES = {
    "tasks": {"tasks": [str], "queues": [str]},
    "ping": {"alive": bool},
    "canary": {"ran": bool, "stored": bool},
    "consume": {"confirmed": bool},
    "cancel": {"confirmed": bool},
    "quarantine": {"quarantined": [_TASK], "more?": bool, "unsupported?": str},
    "replay": {"replayed": [_TASK], "unreadable?": int, "next?": str},
}
# So many tasks are quarantined, and so many files read, for one request; so large is the file of one.
MOST_TASKS = 5000
FILE_BYTES = 16 << 20


def text(value):
    """Return a name or an id, fit for a response; None of what is neither."""
    return str(value)[:200] if isinstance(value, (str, int)) else None


def headers_of(message):
    headers = message.get("headers") if isinstance(message, dict) else None
    return headers if isinstance(headers, dict) else {}


def read_file(path):
    """Return the content of a regular file; anything else is never waited for."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES:
            raise ValueError("no file of a task")
        return stream.read(FILE_BYTES)


def application(name):
    from celery.app.utils import find_app

    try:
        import django

        django.setup()
    except ImportError:
        pass
    app = find_app(name)
    app.loader.import_default_modules()
    app.finalize()
    return app


class Operations:
    def __init__(self, app):
        self.app = app

    def tasks(self, _request):
        return {"tasks": sorted(self.app.tasks), "queues": sorted(self.app.amqp.queues)}

    def ping(self, request):
        deadline = time.monotonic() + request["seconds"]
        while True:
            replies = self.app.control.ping(destination=[request["worker"]], timeout=1.0, limit=1)
            if replies:
                return {"alive": True}
            if time.monotonic() > deadline:
                return {"alive": False}

    def _count(self, worker):
        stats = self.app.control.inspect(destination=[worker], timeout=1.0, limit=1).stats() or {}
        try:
            return sum((stats.get(worker) or {}).get("total", {}).values())
        except (AttributeError, TypeError):
            return 0

    def canary(self, request):
        from celery.backends.base import DisabledBackend

        # celery.accumulate is built into every Celery application and only returns its arguments. Where tasks of the
        # application keep results, it is sent as their .delay() does: that fails without the result backend.
        own = [task for name, task in self.app.tasks.items() if not name.startswith("celery.")]
        results = not isinstance(self.app.backend, DisabledBackend) and not all(task.ignore_result for task in own)
        waits = results and not self.app.conf.task_ignore_result
        before = self._count(request["worker"])
        result = self.app.send_task(
            "celery.accumulate",
            args=("shiftmaster",),
            queue=request["queue"],
            ignore_result=not results,
            expires=request["seconds"],
        )
        deadline = time.monotonic() + request["seconds"]
        ran = stored = False
        while time.monotonic() < deadline:
            ran = ran or self._count(request["worker"]) > before
            stored = stored or not waits or result.ready()
            if ran and stored:
                break
            time.sleep(0.1)
        if waits:
            result.forget()
        return {"ran": ran, "stored": stored}

    def consume(self, request):
        return self._each(self.app.control.add_consumer, request)

    def cancel(self, request):
        return self._each(self.app.control.cancel_consumer, request)

    def _each(self, command, request):
        for queue in request["queues"]:
            replies = command(queue, destination=[request["worker"]], reply=True, timeout=3.0, limit=1) or []
            found = [reply.get(request["worker"]) for reply in replies if isinstance(reply, dict)]
            if not any(isinstance(one, dict) and "ok" in one for one in found):
                return {"confirmed": False}
        return {"confirmed": True}

    def quarantine(self, request):
        """Take the tasks that this release does not know out of the queues (or all), each into a file of its own.

        Only a Redis broker keeps its queues as lists; with another one nothing is quarantined; the response reports it.
        """
        with self.app.connection_for_write() as connection:
            channel = connection.default_channel
            client = getattr(channel, "client", None)
            if client is None or not hasattr(client, "lrange"):
                return {"quarantined": [], "unsupported": connection.transport.driver_type}
            known, quarantined = set(self.app.tasks), []
            for queue in request["queues"]:
                for key in self._keys(channel, queue):
                    if client.type(key) not in (b"list", "list"):
                        continue
                    for raw in client.lrange(key, 0, -1):
                        try:
                            message = json.loads(raw)
                        except (ValueError, RecursionError):
                            message = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
                        headers = headers_of(message)
                        task, task_id = text(headers.get("task")), text(headers.get("id"))
                        if task in known and not request.get("all"):
                            continue
                        if len(quarantined) == MOST_TASKS:
                            return {"quarantined": quarantined, "more": True}
                        name = task_id if re.fullmatch(r"[\w-]{1,64}", task_id or "", re.ASCII) else str(uuid.uuid4())
                        path = os.path.join(request["directory"], name + ".json")
                        with open(path + ".new", "w", encoding="utf-8") as stream:
                            json.dump({"queue": queue, "key": key, "message": message}, stream, indent=1)
                            stream.flush()
                            os.fsync(stream.fileno())
                        os.rename(path + ".new", path)
                        client.lrem(key, 1, raw)
                        quarantined.append({"id": task_id, "task": task, "queue": queue})
            return {"quarantined": quarantined}

    @staticmethod
    def _keys(channel, queue):
        separator = getattr(channel, "sep", "\x06\x16")
        steps = getattr(channel, "priority_steps", [0])
        return [queue if not step else "%s%s%s" % (queue, separator, step) for step in steps]

    def replay(self, request):
        """Put quarantined tasks that this release knows back into their queues, and remove their files."""
        replayed, unreadable = [], 0
        with self.app.connection_for_write() as connection:
            client = getattr(connection.default_channel, "client", None)
            listed = os.listdir(request["directory"]) if client is not None else []
            names = sorted(name for name in listed if name.endswith(".json") and name > request.get("after", ""))
            for name in names[:MOST_TASKS]:
                path = os.path.join(request["directory"], name)
                try:
                    entry = json.loads(read_file(path))
                    headers = headers_of(entry["message"])
                    if text(headers.get("task")) in self.app.tasks:
                        client.lpush(entry["key"], json.dumps(entry["message"]))
                        os.unlink(path)
                        replayed.append(
                            {
                                "id": text(headers.get("id")),
                                "task": text(headers.get("task")),
                                "queue": str(text(entry["queue"])),
                            }
                        )
                # Of Redis, too: the key may be no queue.
                except Exception as error:
                    print("%s: %s: %s" % (path, type(error).__name__, error), file=sys.stderr)
                    unreadable += 1
        more = {"next": names[MOST_TASKS - 1]} if len(names) > MOST_TASKS else {}
        return {"replayed": replayed, "unreadable": unreadable, **more}


def main():
    stdout = sys.stdout
    sys.stdout = sys.stderr  # Whatever the application prints must not end up between the responses.
    operations, failure = None, None
    try:
        # Before the first request: the application loads while its units start.
        operations = Operations(application(os.environ["SHIFTMASTER_CELERY_APPLICATION"]))
    except Exception as error:
        failure = error
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if failure is not None:
                raise failure
            response = getattr(operations, request["op"])(request)
        except Exception as error:
            response = {"error": "%s: %s" % (type(error).__name__, error)}
        stdout.write(RESPONSE + json.dumps(response) + "\n")
        stdout.flush()


if __name__ == "__main__":
    main()
else:
    # Read at once: the program that contains this module may be replaced while it runs.
    SOURCE = __spec__.loader.get_source(__name__)

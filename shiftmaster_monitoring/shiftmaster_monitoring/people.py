"""Who works with the application, without a name: active users and how long sessions last.

In the shared directory each user and each session is an empty file that is called by a keyed hash, so that all
processes know the same ones and nothing personal is written down. A user's file was changed at the user's last request
for something. A session's was also read, once, when the session began: its two times are its begin and its last
request.

A session ends when its user logs out, or with its last request before SHIFTMASTER_SESSION_IDLE_SECONDS of silence;
Django itself notices no expiry. Nothing is read of a session that the application has not read itself: no query is
made, and no response varies by cookie that would not.

Several hosts that share a cache exchange the users that they have seen, so that a user who comes to two of them counts
once; all of them then report the same, the number of the installation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time

from django.conf import settings
from django.core.cache import caches

from . import conf, metrics, shared, trouble

WINDOWS = {"5m": 300, "1h": 3600}
# A request of somebody who was seen so lately writes nothing.
TOUCH_SECONDS = 20.0
# Interval of the exchange.
SITE_SECONDS = 15.0
MAX_FILES = 20000
_MAX_KNOWN = 10000
_known = {}  # session: when to write again
_made = 0


def _hash(kind: str, text) -> str:
    key = hashlib.sha256(("shiftmaster_monitoring:%s" % settings.SECRET_KEY).encode()).digest()
    return hashlib.blake2b(("%s:%s" % (kind, text)).encode(), key=key, digest_size=10).hexdigest()


def _session(request):
    """Return (session key, user) where the application has read the session and somebody is logged in, else None."""
    session = getattr(request, "session", None)
    content = getattr(session, "_session_cache", None)
    user = content.get("_auth_user_id") if isinstance(content, dict) else None
    key = getattr(session, "session_key", None)
    return (key, user) if user and key else None


def seen(request) -> None:
    """Record a request of a logged in user."""
    found = _session(request)
    if found is None or shared.directory() is None:
        return
    now = time.monotonic()
    if _known.get(found[0], 0.0) > now:
        return
    if len(_known) >= _MAX_KNOWN:
        _known.clear()
    _known[found[0]] = now + TOUCH_SECONDS
    _touch("users", _hash("user", found[1]))
    _touch("sessions", _hash("session", found[0]))


def _touch(kind: str, name: str) -> None:
    global _made
    path = os.path.join(shared.directory(), kind, name)
    try:
        found = os.stat(path)
        now = time.time_ns()
        if found.st_mtime_ns < now:
            os.utime(path, ns=(found.st_atime_ns, now))
        return
    except FileNotFoundError:
        pass
    os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
    _made += 1
    if _made % 64 == 0 and len(os.listdir(os.path.dirname(path))) > MAX_FILES:
        sweep()
        if len(os.listdir(os.path.dirname(path))) > MAX_FILES:
            raise OSError("more than %d files in %s" % (MAX_FILES, os.path.dirname(path)))
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))


def logged_out(sender=None, request=None, **_more) -> None:
    """Measure the session that ends; called before Django forgets it."""
    with trouble.contained("the length of a session cannot be measured"):
        found = _session(request)
        if found and shared.directory() is not None:
            _known.pop(found[0], None)
            _end(os.path.join(shared.directory(), "sessions", _hash("session", found[0])), time.time())


def _end(path: str, at: float = None) -> None:
    """Measure a session, once: whoever removes its file does."""
    try:
        found = os.stat(path)
        os.unlink(path)
    except FileNotFoundError:
        return
    metrics.sessions.observe(max(0.0, (at or found.st_mtime) - found.st_atime))


def _ages(kind: str, now: float) -> dict:
    """Return {name: seconds since the last request}."""
    with contextlib.suppress(FileNotFoundError):
        with os.scandir(os.path.join(shared.directory(), kind)) as entries:
            found = {}
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found[entry.name] = now - entry.stat().st_mtime
            return found
    return {}


def sweep() -> dict:
    """End the sessions that have been silent for long, and forget users; returns {user: seconds since last seen}."""
    now = time.time()
    for name, age in _ages("sessions", now).items():
        if age > float(conf.get("SHIFTMASTER_SESSION_IDLE_SECONDS")):
            _end(os.path.join(shared.directory(), "sessions", name))
    users = _ages("users", now)
    for name, age in users.items():
        if age > max(WINDOWS.values()):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(shared.directory(), "users", name))
    return users


def active() -> dict:
    """Return {window: distinct users} of this host alone."""
    ages = sweep().values()
    return {window: sum(age <= seconds for age in ages) for window, seconds in WINDOWS.items()}


def _shared_cache():
    """Return the cache if other hosts can see what is in it, else None."""
    alias = conf.get("SHIFTMASTER_HEALTH_CACHE")
    backend = settings.CACHES.get(alias, {}).get("BACKEND", "").lower()
    return caches[alias] if "redis" in backend or "memcached" in backend else None


def active_on_all_hosts(_limit: float) -> dict:
    """Return {"windows": {window: distinct users}} of all hosts that share the cache; may take as long as the cache."""
    cache = _shared_cache()
    if cache is None:
        return {"windows": active()}
    path = os.path.join(shared.directory(), "topology.json")
    with contextlib.suppress(OSError, ValueError):
        if time.time() - os.stat(path).st_mtime < SITE_SECONDS:
            with open(path, encoding="ascii") as stream:
                return {"windows": json.load(stream)}
    now, me = time.time(), os.uname().nodename
    try:
        cache.set("shiftmaster-seen-" + me, {name: round(now - age) for name, age in sweep().items()}, 3600)
        hosts = cache.get("shiftmaster-hosts") or {}
        hosts = {name: at for name, at in hosts.items() if now - at < 3600}
        # Two hosts that do this at once: the one that is lost is there again with its next turn.
        cache.set("shiftmaster-hosts", dict(hosts, **{me: now}), 3600)
        last = {}
        for found in cache.get_many(["shiftmaster-seen-" + name for name in {*hosts, me}]).values():
            for name, at in found.items():
                last[name] = max(at, last.get(name, 0))
    finally:
        cache.close()
    windows = {window: sum(now - at <= seconds for at in last.values()) for window, seconds in WINDOWS.items()}
    with open(path + ".%d.new" % os.getpid(), "w", encoding="ascii") as stream:
        json.dump(windows, stream)
    os.rename(path + ".%d.new" % os.getpid(), path)
    return {"windows": windows}

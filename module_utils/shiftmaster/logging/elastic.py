"""What the APIs of Elasticsearch and Kibana are asked by, and how what they hold is compared with what is wanted."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request

# Elasticsearch reads the files of its users and roles again every five seconds. What was written a moment ago may not
# be in use yet, on one node or the other.
REREAD_SECONDS = 30


class Failed(Exception):
    """str() says what did not hold; status is HTTP's where there was a response."""

    status = None


class NoAnswer(Failed):
    """Nobody answered at all."""


class Api:
    def __init__(self, url, ca_file=None, login=None, timeout=30, headers=None):
        self.url, self.login, self.timeout, self.headers = url.rstrip("/"), login, timeout, headers or {}
        self.ca_file, self.opener = ca_file, None

    def open(self, request):
        """OSError where nobody answers, or the authority is not there yet: a host that is not set up."""
        if self.opener is None:
            handlers = [urllib.request.ProxyHandler({})]
            if self.url.startswith("https:"):
                handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self.ca_file)))
            self.opener = urllib.request.build_opener(*handlers)
        return self.opener.open(request, timeout=self.timeout)

    def ask(self, path, method="GET", body=None, data=None, kind="application/json", login=None):
        """Return (status, answer as JSON or text)."""
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Accept", "application/json")
        for name, value in self.headers.items():
            request.add_header(name, value)
        login = login or self.login
        if login:
            token = base64.b64encode(("%s:%s" % login).encode("utf-8")).decode("ascii")
            request.add_header("Authorization", "Basic " + token)
        if body is not None:
            data = json.dumps(body).encode("utf-8")
        if data is not None:
            request.data = data
            request.add_header("Content-Type", kind)
        try:
            with self.open(request) as answer:
                return answer.status, decoded(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, decoded(error.read())
        except (OSError, ssl.SSLError) as error:
            raise NoAnswer("%s%s: %s" % (self.url, path, getattr(error, "reason", error)))

    def call(self, path, method="GET", body=None, fine=(200,), **more):
        """Return the answer; whatever status is not fine is a failure that says what was answered."""
        status, answer = self.ask(path, method, body, **more)
        if status not in fine:
            failure = Failed("%s %s answers %s: %s" % (method, path, status, said(answer)))
            failure.status = status
            raise failure
        return answer


def cluster_health(api):
    """Return the cluster's health. Yellow on a single node is green if each of our indices is.

    Yellow means that replicas alone are unassigned. Kibana creates indices with one, which a single node never assigns.
    """
    health = api.call("/_cluster/health?level=indices")
    own = [found["status"] for name, found in health["indices"].items() if "logs-shiftmaster." in name]
    if health["status"] == "yellow" and health["number_of_nodes"] == 1 and set(own) <= {"green"}:
        health["status"] = "green"
    return health


def decoded(data):
    text = data.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


def said(answer):
    """Return what was said of an error, in a line."""
    if isinstance(answer, dict):
        error = answer.get("error", answer)
        if isinstance(error, dict):
            answer = error.get("reason") or error.get("message") or answer.get("message") or error
        else:
            answer = answer.get("message") or error
    text = answer if isinstance(answer, str) else json.dumps(answer, sort_keys=True)
    return " ".join(text.split())[:300]


def quoted(text):
    return urllib.parse.quote(text, safe="")


def lacks(wanted, present, path=""):
    """Return where what is there differs from what is wanted; what is there besides does not count.

    Elasticsearch answers numbers and booleans of settings as text, adds what it has by default, and writes
    {"index": {"codec": ...}} for {"index.codec": ...}.
    """
    if isinstance(wanted, dict):
        if not isinstance(present, dict):
            return [path or "."]
        wanted, present = nested(wanted), nested(present)
        found = []
        for key, value in wanted.items():
            where = "%s.%s" % (path, key) if path else key
            found += lacks(value, present[key], where) if key in present else [where]
        return found
    if isinstance(wanted, list):
        if not isinstance(present, list) or len(wanted) != len(present):
            return [path]
        return [
            where
            for number, (one, other) in enumerate(zip(wanted, present))
            for where in lacks(one, other, "%s[%d]" % (path, number))
        ]
    return [] if plain(wanted) == plain(present) else [path]


def plain(value):
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def nested(settings):
    """Return a mapping whose keys have no dots: {"a.b": 1} becomes {"a": {"b": 1}}."""
    found = {}
    for key, value in settings.items():
        *first, last = str(key).split(".")
        place = found
        for part in first:
            inner = place.get(part)
            if not isinstance(inner, dict):
                inner = place[part] = {}
            place = inner
        if isinstance(value, dict) and isinstance(place.get(last), dict):
            place[last] = {**place[last], **nested(value)}
        else:
            place[last] = nested(value) if isinstance(value, dict) else value
    return found

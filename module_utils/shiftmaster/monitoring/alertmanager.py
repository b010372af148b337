"""Asking an Alertmanager (API v2, versions 0.25 to 0.28)."""

import base64
import datetime
import email.utils
import json
import re
import ssl
import time
import urllib.error
import urllib.request

# How a module is told where Alertmanager is.
ARGUMENTS = {
    "url": {"type": "str", "required": True},
    "user": {"type": "str", "default": ""},
    "password": {"type": "str", "default": "", "no_log": True},
    "ca_file": {"type": "path"},
    "timeout_seconds": {"type": "int", "default": 5},
}


class Unreachable(Exception):
    """Alertmanager could not be asked, or answered with an error."""


def parse_time(text):
    """Seconds of RFC 3339, as Alertmanager writes it (with up to nine digits behind the point)."""
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)$", text)
    if not match:
        raise ValueError("%r is no time" % text)
    return datetime.datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00")).timestamp()


def format_time(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Api:
    """url, user, password, ca_file and timeout_seconds of a module's arguments."""

    def __init__(self, params):
        self.base = params["url"].rstrip("/")
        self.timeout = params["timeout_seconds"]
        self.headers = {"Accept": "application/json"}
        if params["user"]:
            pair = "%s:%s" % (params["user"], params["password"])
            self.headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        # A proxy is for what is outside; Alertmanager is not.
        handlers = [urllib.request.ProxyHandler({})]
        if self.base.startswith("https:"):
            try:
                context = ssl.create_default_context(cafile=params["ca_file"])
            except OSError as error:
                raise Unreachable("the authority %s cannot be read: %s" % (params["ca_file"], error))
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self.opener = urllib.request.build_opener(*handlers)
        self.clock = None

    def text(self, method, path, body=None):
        """The answer as it came. Raises urllib's HTTPError for one above 399, and Unreachable where there is none."""
        data = None if body is None else json.dumps(body).encode()
        headers = dict(self.headers, **({"Content-Type": "application/json"} if data else {}))
        request = urllib.request.Request(self.base + path, data=data, headers=headers, method=method)
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                self.clock = response.headers.get("Date")
                return response.read().decode("utf-8", "replace")
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError) as error:
            raise Unreachable("Alertmanager cannot be asked: %s" % getattr(error, "reason", error))

    def call(self, method, path, body=None, missing=None):
        """The answer of a path below /api/v2; `missing` for 404, where it is given."""
        try:
            text = self.text(method, "/api/v2" + path, body)
        except urllib.error.HTTPError as error:
            if error.code == 404 and missing is not None:
                return missing
            said = error.read(500).decode("utf-8", "replace").strip().strip('"')
            raise Unreachable("Alertmanager answers %s %s with %d: %s" % (method, path, error.code, said))
        try:
            return json.loads(text) if text else {}
        except ValueError:
            raise Unreachable("what answers at %s is no Alertmanager" % self.base)

    def listed(self, path):
        answer = self.call("GET", path)
        if not isinstance(answer, list):
            raise Unreachable("what answers at %s is no Alertmanager" % self.base)
        return answer

    def now(self):
        """Alertmanager's own time, by which things end there; this host's where it did not say."""
        try:
            return email.utils.parsedate_to_datetime(self.clock).timestamp()
        except (TypeError, ValueError):
            return time.time()

"""A client of the JSON APIs of the site's services (Elasticsearch, Kibana, Grafana, Alertmanager). It uses no proxy."""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

# Options of a module for the address of such a service.
ARGUMENTS = {
    "url": {"type": "str", "required": True},
    "ca_file": {"type": "path"},
    "user": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
}


# Elasticsearch reads the files of its users and roles again every five seconds. What was written just now may not
# be in use yet, on one node or the other.
REREAD_SECONDS = 30


class Failed(Exception):
    """str() names the failed condition; status is HTTP's where there was a response."""

    status = None


class NoResponse(Failed):
    """No response at all."""


class Api:
    def __init__(self, url, ca_file=None, login=None, timeout=30, headers=None):
        self.url, self.login, self.timeout, self.headers = url.rstrip("/"), login, timeout, headers or {}
        self.ca_file, self.opener, self.date = ca_file, None, None

    def open(self, request):
        """OSError where nothing responds; NoResponse where the authority is missing: a host that is not set up."""
        if self.opener is None:
            handlers = [urllib.request.ProxyHandler({})]
            if self.url.startswith("https:"):
                try:
                    context = ssl.create_default_context(cafile=self.ca_file)
                except OSError as error:
                    raise NoResponse("%s: %s" % (self.ca_file, error))
                handlers.append(urllib.request.HTTPSHandler(context=context))
            self.opener = urllib.request.build_opener(*handlers)
        return self.opener.open(request, timeout=self.timeout)

    def send(self, path, method="GET", body=None, data=None, kind="application/json", login=None):
        """Return (status, response as JSON or text)."""
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
            with self.open(request) as response:
                self.date = response.headers.get("Date")
                return response.status, decoded(response.read())
        except urllib.error.HTTPError as error:
            return error.code, decoded(error.read())
        except (OSError, ValueError) as error:
            raise NoResponse("%s%s: %s" % (self.url, path, getattr(error, "reason", error)))

    def call(self, path, method="GET", body=None, fine=(200,), **more):
        """Return the response; any other status is a failure that contains the response."""
        status, response = self.send(path, method, body, **more)
        if status not in fine:
            failure = Failed("%s %s returns %s: %s" % (method, path, status, message_of(response)))
            failure.status = status
            raise failure
        return response


class Instance:
    """What a module keeps of a service: run() returns facts, done names the changes."""

    def __init__(self, module, **more):
        self.module, self.p, self.done = module, module.params, []
        self.api = Api(self.p["url"], self.p["ca_file"], (self.p["user"], self.p["password"]), **more)

    def wait(self, inspect, wanted):
        """Return what inspect() returns once it raises nothing; it is called once in check mode."""
        began, limit = time.monotonic(), self.p["timeout_seconds"]
        while True:
            passed = float("inf") if self.module.check_mode else time.monotonic() - began
            try:
                return inspect()
            except NoResponse as error:
                if self.module.check_mode:
                    raise
                why = error
            except Failed as error:
                if error.status in (401, 403) and passed >= REREAD_SECONDS:
                    raise Failed("%s cannot log in: %s" % (self.p["user"], error))
                why = error
            if passed >= limit:
                raise Failed("%s (waited %d s): %s" % (wanted, limit, why))
            time.sleep(2)


def keep(module, service, instance):
    """Run a module that keeps what a service holds: instance.run() returns facts, instance.done names the changes."""
    try:
        facts = instance.run()
    except NoResponse as error:
        if not module.check_mode:
            module.fail_json(msg="%s does not respond: %s" % (service, error))
        module.exit_json(changed=True, done=["%s does not run yet; the rest would follow" % service])
    except Failed as error:
        module.fail_json(msg="%s: %s" % (service, error), done=instance.done)
    diff = {"before": "", "after": "".join(line + "\n" for line in instance.done)}
    module.exit_json(changed=bool(instance.done), done=instance.done, diff=diff, **facts)


def decoded(data):
    text = data.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


def message_of(response):
    """Return the message of an error, in a line."""
    if isinstance(response, dict):
        error = response.get("error", response)
        if isinstance(error, dict):
            response = error.get("reason") or error.get("message") or response.get("message") or error
        else:
            response = response.get("message") or error
    text = response if isinstance(response, str) else json.dumps(response, sort_keys=True)
    return " ".join(text.split())[:300]


def quoted(text):
    return urllib.parse.quote(text, safe="")

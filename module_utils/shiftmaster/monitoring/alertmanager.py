"""Queries of an Alertmanager (API v2, versions 0.25 to 0.28)."""

import datetime
import email.utils
import time

from ..host import json_api
from ..host.json_api import Failed

# Options of a module for the address of Alertmanager.
ARGUMENTS = {
    "url": {"type": "str", "required": True},
    "user": {"type": "str", "default": ""},
    "password": {"type": "str", "default": "", "no_log": True},
    "ca_file": {"type": "path"},
    "timeout_seconds": {"type": "int", "default": 5},
}


def format_time(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Api(json_api.Api):
    """url, user, password, ca_file and timeout_seconds of a module's arguments; paths are below /api/v2."""

    def __init__(self, params):
        login = (params["user"], params["password"]) if params["user"] else None
        super().__init__(params["url"], params["ca_file"], login, params["timeout_seconds"])

    def call(self, path, *arguments, **more):
        return super().call("/api/v2" + path, *arguments, **more)

    def metrics(self):
        return super().call("/metrics")

    def listed(self, path):
        response = self.call(path)
        if not isinstance(response, list):
            raise Failed("%s is no Alertmanager" % self.url)
        return response

    def now(self):
        """Alertmanager's own time, by which things end there; this host's where it is absent."""
        try:
            return email.utils.parsedate_to_datetime(self.date).timestamp()
        except (TypeError, ValueError):
            return time.time()

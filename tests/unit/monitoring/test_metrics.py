"""Metrics of a service that listens on a socket of the host only."""

from __future__ import annotations

import http.server
import socketserver
import threading

import pytest
from ansible.module_utils.shiftmaster.monitoring import metrics, prometheus


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(b"build_info 1\n")

    def address_string(self):
        return "socket"

    def log_message(self, *_arguments):
        pass


def test_a_socket_is_queried_as_nginx_writes_it(tmp_path):
    path = tmp_path / "service.sock"
    with Server(str(path), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status, text = prometheus.get(f"http://unix:{path}:/metrics")
        assert status == 200 and metrics.value_of(text, "build_info") == 1
        assert prometheus.get(f"http://unix:{path}:/other")[0] == 404
        server.shutdown()
    with pytest.raises(OSError):
        prometheus.get(f"http://unix:{path}:/metrics", timeout=1)


def test_metrics_are_written_as_prometheus_reads_them():
    described = {"size_bytes": "How large", "runs_total": "How many", "absent": "Nothing"}
    name = metrics.labels(name='a"b\\c\nd', kind="x")
    values = {("size_bytes", name): 1.5, ("runs_total", ""): 3, ("size_bytes", 'name="a"'): 2}
    assert metrics.exposition(described, values).splitlines() == [
        "# HELP size_bytes How large", "# TYPE size_bytes gauge", 'size_bytes{name="a"} 2',
        'size_bytes{name="a\\"b\\\\c\\nd",kind="x"} 1.5', "# HELP runs_total How many", "# TYPE runs_total counter",
        "runs_total 3",
    ]  # fmt: skip
    assert metrics.exposition(described, {}) == ""

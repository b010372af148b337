"""The program of role exporter that reads containers, against a real HTTP server on a unix socket."""

from __future__ import annotations

import json
import re
import socketserver
import stat
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.monitoring import container_metrics

ROOT = Path(__file__).resolve().parents[3]
RECORDED = json.loads((ROOT / "tests/unit/recorded/engine.json").read_text(encoding="utf-8"))


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def engine(tmp_path):
    """A function that starts an engine with these responses (path -> object, status or a function of the handler)."""
    started = []

    def start(responses):
        requested = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                requested.append(self.path)
                response = responses.get(self.path, 404)
                if callable(response):
                    return response(self)
                status, body = (response, b"{}") if isinstance(response, int) else (200, json.dumps(response).encode())
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                # As Docker sends what is larger.
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for at in range(0, len(body), 1000):
                    part = body[at : at + 1000]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.write(b"0\r\n\r\n")

            def address_string(self):
                return "socket"

            def log_message(self, *_arguments):
                pass

        path = str(tmp_path / "engine.sock")
        server = Engine(path, Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return path, requested

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def metrics(path):
    found = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert name not in found, "a series twice"
            found[name] = float(value)
    return found


def test_metrics_of_recorded_containers(engine, tmp_path):
    path, requested = engine(RECORDED)
    output = tmp_path / "c.prom"
    before = time.time()
    assert container_metrics.main(path, str(output)) == 0
    found = metrics(output)
    assert found["shiftmaster_container_engine_up"] == 1
    assert before - 1 <= found["shiftmaster_containers_last_collected_timestamp_seconds"] <= time.time() + 0.001
    assert found['shiftmaster_containers{state="running"}'] == 2
    assert found['shiftmaster_containers{state="exited"}'] == 1
    assert found['shiftmaster_container_info{image="shiftmaster-ops/base:trixie",name="web"}'] == 1
    assert [found[f'shiftmaster_container_running{{name="{name}"}}'] for name in ("web", "sick", "killed")] == [1, 1, 0]
    for name, health in (("web", "healthy"), ("sick", "unhealthy"), ("killed", "none")):
        for state in ("healthy", "unhealthy", "starting", "none"):
            assert found[f'shiftmaster_container_health{{name="{name}",state="{state}"}}'] == (state == health)
    assert found['shiftmaster_container_restarts_total{name="sick"}'] == 3
    assert found['shiftmaster_container_oom_killed{name="killed"}'] == 1
    assert found['shiftmaster_container_exit_code{name="killed"}'] == 137
    stats = RECORDED[next(key for key in RECORDED if key.endswith("one-shot=true"))]
    assert found['shiftmaster_container_cpu_seconds_total{name="web"}'] == pytest.approx(
        stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
    )
    assert found['shiftmaster_container_memory_bytes{name="web"}'] == (
        stats["memory_stats"]["usage"] - stats["memory_stats"]["stats"]["total_inactive_file"]
    )
    # A stopped container has no metrics of its own, and is not queried.
    assert 'shiftmaster_container_memory_bytes{name="killed"}' not in found
    assert len([target for target in requested if "stats" in target]) == 2
    assert stat.S_IMODE(output.stat().st_mode) == 0o644
    types = re.findall(r"^# TYPE (\w+) (\w+)$", output.read_text(), re.M)
    assert [name for name, _kind in types] == list(container_metrics.HELP)
    assert [name for name, kind in types if kind == "counter"] == [
        "shiftmaster_container_restarts_total", "shiftmaster_container_cpu_seconds_total",
    ]  # fmt: skip


@pytest.mark.parametrize("memory, expected", [
    ({"usage": 100, "stats": {"inactive_file": 30}}, 70),
    ({"usage": 100, "stats": {"total_inactive_file": 40, "inactive_file": 30}}, 60),
    ({"usage": 10, "stats": {"inactive_file": 30}}, 10),
    ({"usage": 100}, 100),
    ({}, None),
])  # fmt: skip
def test_memory_of_both_kinds_of_cgroups(memory, expected):
    assert container_metrics.memory_bytes({"memory_stats": memory}) == expected


def test_a_container_that_ends_meanwhile_is_skipped(engine, tmp_path):
    gone = next(key for key in RECORDED if key.endswith("/json") and RECORDED[key]["Name"] == "/web")
    path, _requested = engine(
        {key: value for key, value in RECORDED.items() if not key.startswith(gone[: -len("/json")])}
    )
    container_metrics.main(path, str(tmp_path / "c.prom"))
    found = metrics(tmp_path / "c.prom")
    assert found["shiftmaster_container_engine_up"] == 1
    assert not [name for name in found if 'name="web"' in name]
    assert found['shiftmaster_container_running{name="sick"}'] == 1


def assert_reports_failure(output, last):
    assert metrics(output).keys() == {
        "shiftmaster_container_engine_up",
        "shiftmaster_containers_last_collected_timestamp_seconds",
        "shiftmaster_containers_collect_duration_seconds",
    }
    assert metrics(output)["shiftmaster_container_engine_up"] == 0
    assert metrics(output)["shiftmaster_containers_last_collected_timestamp_seconds"] == last


def test_an_unreachable_engine_leaves_no_old_metrics_but_their_time(engine, tmp_path, capsys):
    path, _requested = engine(RECORDED)
    output = tmp_path / "c.prom"
    container_metrics.main(path, str(output))
    last = metrics(output)["shiftmaster_containers_last_collected_timestamp_seconds"]
    for _time in range(2):
        assert container_metrics.main(str(tmp_path / "none"), str(output)) == 0
        assert_reports_failure(output, last)
    assert capsys.readouterr().err.count("<4>") == 1, "every 15 seconds, it would fill the journal"
    output.unlink()
    container_metrics.main(str(tmp_path / "none"), str(output))
    assert_reports_failure(output, 0)


LIST = "/v1.41/containers/json?all=1"


def cut(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"[")
    handler.close_connection = True


@pytest.mark.parametrize(
    "response",
    [500, {"message": "no"}, [{"State": "running"}], [None], "text", cut],
    ids=["500", "no list", "no id", "null", "text", "no JSON"],
)
def test_invalid_responses(engine, tmp_path, response):
    path, _requested = engine({LIST: response})
    container_metrics.main(path, str(tmp_path / "c.prom"))
    assert_reports_failure(tmp_path / "c.prom", 0)


@pytest.mark.parametrize("drip", [False, True], ids=["silent", "byte by byte"])
def test_an_engine_that_hangs_is_waited_for_within_the_limit(engine, tmp_path, drip):
    end = threading.Event()

    def hang(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not end.wait(0.05):
            if drip:
                try:
                    handler.wfile.write(b" ")
                except OSError:
                    return

    path, _requested = engine({LIST: hang})
    began = time.monotonic()
    # In a thread: one that waits for ever shall fail, not hang.
    asker = threading.Thread(target=container_metrics.main, args=(path, str(tmp_path / "c.prom"), 0.6), daemon=True)
    asker.start()
    asker.join(5)
    hung = asker.is_alive()
    end.set()
    assert not hung
    assert 0.5 < time.monotonic() - began < 5
    assert_reports_failure(tmp_path / "c.prom", 0)


def test_many_containers_share_the_limit(engine, tmp_path):
    def slow(handler):
        time.sleep(0.3)
        body = json.dumps(RECORDED[handler.path]).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    path, _requested = engine({key: RECORDED[key] if key == LIST else slow for key in RECORDED})
    began = time.monotonic()
    container_metrics.main(path, str(tmp_path / "c.prom"), 0.7)
    assert time.monotonic() - began < 5
    assert_reports_failure(tmp_path / "c.prom", 0)

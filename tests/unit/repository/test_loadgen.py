"""tests/load/loadgen.py counts what went wrong: against a toy server that drops, fails, stalls and forgets."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import pytest

LOADGEN = Path(__file__).resolve().parents[2] / "load" / "loadgen.py"
spec = importlib.util.spec_from_file_location("loadgen", LOADGEN)
loadgen = importlib.util.module_from_spec(spec)
sys.modules["loadgen"] = loadgen
spec.loader.exec_module(loadgen)


class Toy:
    """HTTP over plain sockets. `behave(number, method, path)` decides about the n-th request (from 1)."""

    def __init__(self, behave=lambda number, method, path: 200, forget=()):
        self.behave, self.forget = behave, set(forget)
        self.stored, self.count, self.misdone = [], 0, {"dropped": 0, "failed": 0}
        self.lock, self.sockets = threading.Lock(), []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(sock)
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        try:
            with sock, sock.makefile("rb") as lines:
                while self.one(sock, lines):
                    pass
        except OSError:
            pass

    def one(self, sock, lines):
        first = lines.readline()
        if not first:
            return False
        method, path, _ = first.decode().split(" ")
        headers = {}
        while line := lines.readline().decode().strip():
            key, _, value = line.partition(":")
            headers[key.lower()] = value.strip()
        body = lines.read(int(headers.get("content-length", 0))).decode()
        with self.lock:
            self.count += 1
            number = self.count
        what = self.behave(number, method, path)
        if what == "drop":
            self.misdone["dropped"] += 1
            return False
        if what == "half":
            self.misdone["dropped"] += 1
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all")
            return False
        if isinstance(what, float):
            time.sleep(what)
            what = 200
        extra = ""
        if path.startswith("/login"):
            if method == "GET":
                page = '<input type="hidden" name="csrf" value="a&amp;b">'
                return self.respond(sock, 200, page, "Set-Cookie: c=1\r\n")
            form = urllib.parse.parse_qs(body)
            good = form.get("csrf") == ["a&b"] and form.get("password") == ["secret"] and "c=1" in headers["cookie"]
            return self.respond(sock, 302 if good else 403, "", "Set-Cookie: sessionid=s; Path=/\r\n" if good else "")
        if what == 200 and method == "POST":
            with self.lock:
                if len(self.stored) + 1 not in self.forget:
                    self.stored.append(urllib.parse.parse_qs(body)["value"][0])
                else:
                    self.forget.discard(len(self.stored) + 1)
            what = 302
        if what not in (200, 302):
            self.misdone["failed"] += 1
        text = " ".join(f"[{value}]" for value in self.stored) if path == "/all" else "ok <v>2.0.0</v>"
        return self.respond(sock, what, text, extra)

    @staticmethod
    def respond(sock, status, text, extra=""):
        body = text.encode()
        sock.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body)
        return True

    def hang_up(self):
        for sock in self.sockets:
            sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        # Closing alone leaves the thread in accept(), on a number that another socket gets next.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def toy(request):
    servers = []

    def make(*args, **kwargs):
        servers.append(Toy(*args, **kwargs))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def test_a_kept_connection_that_the_server_has_ended_is_not_used_though_the_loop_was_busy(toy):
    server = toy()
    head = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"

    async def run():
        connection = loadgen.Connection(loadgen.Target("127.0.0.1", server.port, "x", "http://x", None, ""))
        await connection.exchange(head, b"", "GET")
        server.hang_up()
        time.sleep(0.1)  # Not asyncio's: the connection's end is not read meanwhile.
        return await connection.exchange(head, b"", "GET")

    assert asyncio.run(run()).status == 200


def load(tmp_path, port, requests=None, more=None, *options, expect_code=None):
    scenario = {
        "base": f"http://127.0.0.1:{port}",
        "version": {"pattern": "<v>([^<]+)</v>"},
        "requests": requests or [{"name": "page", "path": "/page"}],
        **(more or {}),
    }
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(scenario))
    results = tmp_path / "results.jsonl"
    argv = [str(path), "--results", str(results), "--summary", str(tmp_path / "summary.json"), *options]
    env = {**os.environ, "TOY_PASSWORD": "secret"}
    done = subprocess.run([sys.executable, str(LOADGEN), *argv], capture_output=True, text=True, timeout=60, env=env)
    if expect_code is not None:
        assert done.returncode == expect_code, done.stdout + done.stderr
    if not done.stdout:
        return None, done
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    if "requests" in summary:
        assert len(lines) == summary["requests"]
    return summary, lines


QUICK = ("--clients", "4", "--think-seconds", "0", "--seconds", "20", "--timeout", "2")


def test_a_healthy_server_has_no_failure(tmp_path, toy):
    server = toy()
    summary, lines = load(tmp_path, server.port, None, None, *QUICK, "--max-requests", "300", expect_code=0)
    assert (summary["requests"], summary["failed"], summary["errors"]) == (300, 0, {})
    assert summary["versions"]["2.0.0"]["requests"] == 300
    assert summary["stopped_by"] == "max-requests"
    assert server.count == 300, "a request was sent twice or not at all"
    assert {line["status"] for line in lines} == {200}


def test_every_dropped_and_failed_request_is_counted(tmp_path, toy):
    def behave(number, method, path):
        return "drop" if number % 10 == 0 else 500 if number % 7 == 0 else "half" if number % 23 == 0 else 200

    server = toy(behave)
    summary, lines = load(tmp_path, server.port, None, None, *QUICK, "--max-requests", "400", expect_code=1)
    assert server.count == 400
    assert server.misdone["dropped"] > 40 and server.misdone["failed"] > 40
    assert summary["failed"] == server.misdone["dropped"] + server.misdone["failed"]
    assert summary["errors"]["status 500"] == server.misdone["failed"]
    assert sum(1 for line in lines if line["error"]) == summary["failed"]


def test_a_request_without_a_response_on_a_kept_connection_is_repeated_on_request(tmp_path, toy):
    server = toy(lambda number, method, path: "drop" if number % 10 == 0 else 200)
    options = ("--max-requests", "200", "--clients", "1", "--think-seconds", "0", "--seconds", "20")
    summary, _ = load(tmp_path, server.port, None, None, *options, "--repeat-unanswered", expect_code=0)
    assert summary["repeated"] == server.misdone["dropped"] == 22
    server = toy(lambda number, method, path: "half" if number == 5 else "drop" if number == 7 else 200)
    # Neither half a response nor a new connection's end is repeated.
    summary, _ = load(
        tmp_path, server.port, None, None, *options, "--repeat-unanswered", "--requests-per-connection", "1"
    )
    assert (summary["failed"], summary["repeated"]) == (2, 0)


def test_a_closed_port_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    summary, _ = load(tmp_path, port, None, None, *QUICK, "--max-requests", "12", expect_code=1)
    assert summary["errors"] == {"refused": 12}


def test_a_server_that_does_not_respond_is_a_timeout(tmp_path, toy):
    server = toy(lambda number, method, path: 12.0 if number == 3 else 200)
    summary, lines = load(tmp_path, server.port, None, None, *QUICK[:-1], "3", "--max-requests", "20", expect_code=1)
    assert summary["errors"] == {"timeout": 1}
    assert next(line for line in lines if line["error"])["ms"] >= 3000


def test_a_run_without_a_request_is_not_a_success(tmp_path, toy):
    summary, _ = load(tmp_path, toy().port, None, None, "--max-requests", "0", "--seconds", "0.2", expect_code=1)
    assert summary["requests"] == 0


def test_open_loop_counts_latency_from_the_time_a_request_was_due(tmp_path, toy):
    """The tenth request of each of two clients takes a second: some fifty requests were due in it and had to wait."""
    server = toy(lambda number, method, path: 1.0 if number in (20, 21) else 200)
    options = ("--clients", "2", "--rate", "50", "--seconds", "2", "--timeout", "5")
    summary, lines = load(tmp_path, server.port, None, None, *options, expect_code=0)
    late = [line for line in lines if line["ms"] > 100]
    assert len(late) > 20, "the stall hid the requests that were due in it"
    # On a busy machine the clients are late themselves.
    assert 60 <= summary["requests"] <= 150
    assert summary["mode"] == "open, 50/s"


def test_open_loop_counts_what_was_never_sent(tmp_path, toy):
    server = toy(lambda number, method, path: 30.0)
    options = ("--clients", "1", "--rate", "20", "--seconds", "1", "--timeout", "1")
    summary, _ = load(tmp_path, server.port, None, None, *options, expect_code=1)
    assert summary["requests"] >= 19 and summary["failed"] == summary["requests"]
    assert summary["errors"]["never sent"] > 5


WRITES = [
    {
        "name": "save",
        "path": "/save",
        "form": {"value": "{unique}/{day}"},
        "expect": [302],
        "read_back": {"path": "/all", "pattern": r"\[{unique}/{day}\]"},
    },
]
VALUES = {"values": {"day": {"range": [1, 9], "format": "%02d"}, "week": [str(n) for n in range(50)]}}


def test_acknowledged_writes_are_found(tmp_path, toy):
    server = toy()
    summary, _ = load(tmp_path, server.port, WRITES, VALUES, *QUICK, "--max-requests", "60", expect_code=0)
    assert summary["writes"]["acknowledged"] == summary["writes"]["found"] == 60
    assert len(set(server.stored)) == 60


def test_a_lost_write_is_found(tmp_path, toy):
    server = toy(forget={7, 20})
    summary, _ = load(tmp_path, server.port, WRITES, VALUES, *QUICK, "--max-requests", "60", expect_code=1)
    assert summary["failed"] == 0
    assert summary["writes"]["lost_count"] == 2 and summary["writes"]["found"] == 58


def test_used_up_values_end_the_run_with_a_sentence(tmp_path, toy):
    few = {"values": {"day": ["1", "2", "3"]}}
    summary, _ = load(tmp_path, toy().port, WRITES, few, *QUICK, "--max-requests", "60", expect_code=2)
    assert "3 combinations" in summary["error"]


LOGIN = {"login": {"page": "/login/", "username": "demo", "password_env": "TOY_PASSWORD", "csrf_field": "csrf"}}


def test_login_sends_the_token_of_the_page(tmp_path, toy):
    summary, _ = load(tmp_path, toy().port, None, LOGIN, *QUICK, "--max-requests", "5", expect_code=0)
    assert summary["requests"] == 5


def test_a_failed_login_is_not_a_run(tmp_path, toy):
    wrong = {"login": {**LOGIN["login"], "password_env": "PATH"}}
    summary, _ = load(tmp_path, toy().port, None, wrong, *QUICK, "--max-requests", "5", expect_code=3)
    assert "the login returns 403" in summary["error"]


def test_sigterm_ends_the_run_with_its_summary(tmp_path, toy):
    server = toy()
    scenario, ready = tmp_path / "scenario.json", tmp_path / "ready"
    scenario.write_text(
        json.dumps({"base": f"http://127.0.0.1:{server.port}", "requests": [{"name": "page", "path": "/"}]})
    )
    options = ("--seconds", "50", "--think-seconds", "0.05", "--ready-file", ready)
    process = subprocess.Popen([sys.executable, LOADGEN, scenario, *options], stdout=subprocess.PIPE, text=True)
    for _ in range(200):
        if ready.exists() and server.count > 10:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    summary = json.loads(out)
    assert process.returncode == 0
    assert summary["stopped_by"] == "SIGTERM"
    assert summary["requests"] == server.count


def test_links_of_a_page_are_followed(tmp_path, toy):
    server = toy()
    server.respond = lambda sock, status, text, extra="": Toy.respond(
        sock, status, '<link href="/static/a.css"><img src="/static/b.svg">', extra
    )
    requests = [
        {"name": "page", "path": "/page", "links": "[\"'](/static/[^\"']+)[\"']"},
        {"name": "file", "kind": "static", "path": "{link}", "weight": 3},
    ]
    summary, lines = load(tmp_path, server.port, requests, None, *QUICK, "--max-requests", "40", expect_code=0)
    assert summary["by_kind"]["static"]["requests"] > 10


@pytest.mark.parametrize(
    "scenario",
    [
        {},
        {"base": "ftp://x"},
        {"base": "http://x"},
        {"base": "http://x", "requests": [{"path": "/"}]},
        {"base": "http://x", "requests": [{"name": "a", "path": "/", "wieght": 2}]},
        {"base": "http://x", "connect": "nonsense", "requests": [{"name": "a", "path": "/"}]},
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, capsys, scenario):
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(scenario))
    assert loadgen.main([str(path)]) == 2
    assert re.fullmatch(r"loadgen: .+\n", capsys.readouterr().err)


# --- metrics -------------------------------------------------------------------------------------------------------


def result(t, ms=10.0, error=""):
    return loadgen.Result(t, "read", "page", 200, ms, error, "")


def test_percentile_is_the_nearest_rank():
    values = [float(n) for n in range(1, 101)]
    assert [loadgen.percentile(values, share) for share in (50, 95, 99, 100)] == [50.0, 95.0, 99.0, 100.0]
    assert loadgen.percentile([7.0], 99) == 7.0
    assert loadgen.percentile([], 99) is None


def test_windows_separate_the_deploy_from_the_rest():
    marks = [{"t": 110.0, "name": "deploy-start"}, {"t": 120.0, "name": "deploy-end"}]
    results = [result(100.0 + n / 10, 10.0) for n in range(300)]
    results += [result(115.0, 30.0) for _ in range(5)] + [result(109.99, 50.0)] + [result(112.0, 1.0, "timeout")]
    summary = loadgen.summarize(results, marks, 100.0, 130.0)
    window = summary["windows"]["deploy"]
    assert window["inside"]["failed"] == 1 and window["outside"]["failed"] == 0
    assert window["inside"]["max_ms"] == 50.0, "a request that was under way when the window began is inside"
    assert (window["inside"]["p99_ms"], window["outside"]["p99_ms"]) == (30.0, 10.0)
    assert window["p99_ratio"] == 3.0
    assert window["inside"]["requests"] + window["outside"]["requests"] == summary["requests"]


def test_a_window_without_an_end_lasts_until_the_end():
    assert loadgen.windows_of([{"t": 5.0, "name": "deploy-start"}], 9.0) == {"deploy": [(5.0, 9.0)]}


def test_marks_survive_a_half_written_line(tmp_path):
    path = tmp_path / "marks"
    path.write_text('{"t": 2, "name": "b"}\n{"t": 1, "name": "a"}\n{"t": 3, "na')
    assert [mark["name"] for mark in loadgen.read_marks(str(path))] == ["a", "b"]


def test_values_are_all_different_and_begin_elsewhere_in_each_run():
    lists = {"day": ["1", "2", "3"], "staff": ["a", "b"]}
    values = loadgen.Values(lists, {}, "seed")
    seen = [values.next() for _ in range(6)]
    assert len({(v["day"], v["staff"]) for v in seen}) == 6
    assert all(v["day_number"] == v["day"] for v in seen)
    with pytest.raises(loadgen.WrongInput):
        values.next()


def test_braces_that_name_no_value_stay():
    assert loadgen.fill("a{b}{{n}}x{2}", {"n": "7"}) == "a{b}{7}x{2}"

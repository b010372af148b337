#!/usr/bin/env python3
"""Plays one slot of the application: HTTP on a unix socket, with login, a form and pages that return the request.

Two of them share their data, as two releases share a database.
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler

SLOT, SOCKET, DATA = sys.argv[1:4]
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "stub"

    def address_string(self):
        return "unix"

    def log_message(self, *args):
        pass

    def respond(self, status, body="", headers=(), content_type="text/html; charset=utf-8"):
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Slot", SLOT)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/echo":
            # Every header as it came, so that a test sees what nginx makes of them.
            pairs = [[name.lower(), value] for name, value in self.headers.items()]
            headers = [(name[4:], value) for name, value in query.items() if name.startswith("set-")]
            self.respond(int(query.get("status", 200)), json.dumps(pairs), headers, "application/json")
        elif url.path in ("/health/", "/health/deep/"):
            self.respond(200, json.dumps({"status": "healthy", "version": SLOT}), content_type="application/json")
        elif url.path == "/slow":
            time.sleep(float(query.get("seconds", 1)))
            self.respond(200, "slow")
        elif url.path == "/cut":
            # Counts how often it was queried, and sends no response.
            with LOCK, open(DATA + ".cut", "a", encoding="utf-8") as log:
                log.write("GET\n")
            self.close_connection = True
        elif url.path == "/values":
            with LOCK, open(DATA, encoding="utf-8") as handle:
                self.respond(200, "".join(f"[{line.strip()}]\n" for line in handle))
        elif url.path == "/login/":
            self.respond(
                200,
                '<input type="hidden" name="csrfmiddlewaretoken" value="token">',
                [("Set-Cookie", "csrftoken=token; Path=/")],
            )
        else:
            self.respond(
                200,
                f'<link rel="stylesheet" href="/static/css/{SLOT}.0123456789ab.css">'
                f"<footer>ShiftMaster {SLOT}</footer>",
            )

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/cut":
            with LOCK, open(DATA + ".cut", "a", encoding="utf-8") as log:
                log.write("POST\n")
            self.close_connection = True
            return
        form = dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace")))
        if self.path == "/login/":
            good = form.get("password") == "secret"
            self.respond(302 if good else 200, "", [("Set-Cookie", "sessionid=s; Path=/"), ("Location", "/")])
        elif form.get("csrfmiddlewaretoken") == "token" and "sessionid=s" in self.headers.get("Cookie", ""):
            with LOCK:
                descriptor = os.open(DATA, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o660)
                os.write(descriptor, (form["value"] + "\n").encode())
                os.close(descriptor)
            self.respond(302, "", [("Location", "/values")])
        else:
            self.respond(403)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    request_queue_size = 256
    daemon_threads = False
    block_on_close = True


def main():
    if os.path.exists(SOCKET):
        os.unlink(SOCKET)
    os.umask(0o007)
    with Server(SOCKET, Handler) as server:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()

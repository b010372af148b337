#!/usr/bin/env python3
"""Receivers of notifications for tests: real servers that accept what the real services document, and nothing else.

  SMTP        STARTTLS, AUTH PLAIN and LOGIN (RFC 5321, RFC 3207, RFC 4954)
  Slack       an incoming webhook
  PagerDuty   Events API v2, /v2/enqueue and /v2/change/enqueue
  dead-man    a URL that wants to be queried regularly

Each message is written as one line of JSON with the time of its arrival: {"at", "receiver", "ok", "problems", …}. A
message that the service would refuse gets the response of the service, and written with its problems.

The checks, and their documentation (read in November 2026; Slack's are below https://api.slack.com, PagerDuty's
below https://developer.pagerduty.com/docs/events-api-v2):
  Slack      "Sending messages using incoming webhooks" (/messaging/webhooks): JSON by POST, one of text, blocks,
             attachments; plain responses.
             "Truncating really long messages" (/changelog/2018-04-truncating-really-long-messages): text up to 40,000
             characters; "keep messages under 4,000".
             "Reference: Secondary message attachments" (/reference/messaging/attachments): 100 attachments at most;
             color is good, warning, danger or hex; fields hold title, value, short; five actions. Attachment texts
             above 8,000 characters are cut (observed).
             "Reference: Layout blocks" (/reference/block-kit/blocks): 50 blocks, header 150, section 3,000 characters.
             "Formatting text for app surfaces" (/reference/surfaces/formatting): & < > are written as entities, but
             for links and mentions.
  PagerDuty  "Events API v2 Overview" (/overview/): an event holds up to 512 KB; 202, 400 with a list of errors, 429.
             "Send an Alert Event" (/trigger-events/): routing_key of 32 characters; event_action; dedup_key up to 255
             characters, needed to acknowledge and to resolve; summary up to 1,024 characters; source; severity; links
             with href; images by https.
             "Send a Change Event" (/send-change-events/): routing_key, summary up to 1,024 characters.

Standard library only, one file: it runs with Debian's python3 (3.11 and later) next to Alertmanager.

  receivers.py --log /var/log/receivers.jsonl --certificate host.crt --key host.key --smtp-user u --smtp-password-file f
  curl -d '{"receiver": "slack", "how": "500", "seconds": 30}' http://127.0.0.1:9590/down     (500, refuse, hang)
  curl http://127.0.0.1:9590/messages?receiver=slack
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import datetime
import email
import email.policy
import json
import re
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

RECEIVERS = ("smtp", "slack", "pagerduty", "deadman")
SLACK_PATH = r"/services/T[A-Z0-9]+/B[A-Z0-9]+/[A-Za-z0-9]+"
DEADMAN_PATH = r"/deadman/[A-Za-z0-9_-]+"

# --- what Slack and PagerDuty accept ----------------------------------------------------------------------------------


def slack_text_problems(where: str, text, limit: int) -> list[str]:
    """Problems of a text in Slack's own markup."""
    if not isinstance(text, str):
        return [f"{where} is not a text"]
    problems = []
    if len(text) > limit:
        problems.append(f"{where} has {len(text)} characters, more than {limit}")
    bare = re.sub(r"<(?:https?://|mailto:|[#@!])[^<>|]*(?:\|[^<>]*)?>", "", text)
    if re.search(r"[<>]", bare) or re.search(r"&(?!amp;|lt;|gt;)", text):
        problems.append(f"{where} holds &, < or > that are not written as entities")
    return problems


def slack_problems(message) -> list[str]:
    """Violations of the documentation of incoming webhooks, attachments and blocks."""
    if not isinstance(message, dict):
        return ["invalid_payload"]
    problems = []
    if not any(message.get(key) for key in ("text", "attachments", "blocks")):
        problems.append("no_text")
    if message.get("text"):
        problems += slack_text_problems("text", message["text"], 4000)
    channel = message.get("channel", "")
    if channel and not re.fullmatch(r"[#@][\w-]{1,80}|[CGD][A-Z0-9]{8,}", str(channel)):
        problems.append("channel is neither #name, @name nor an id")
    attachments = message.get("attachments") or []
    if len(attachments) > 100:
        problems.append("too_many_attachments")
    for attachment in attachments:
        if not any(attachment.get(key) for key in ("text", "fallback", "title", "fields", "blocks")):
            problems.append("an attachment has neither text nor fallback")
        if not re.fullmatch(
            r"good|warning|danger|#?[0-9A-Fa-f]{6}|#?[0-9A-Fa-f]{3}|", str(attachment.get("color", ""))
        ):
            problems.append("color is neither good, warning, danger nor hexadecimal")
        for key, limit in (("text", 4000), ("pretext", 4000), ("title", 1024), ("fallback", 1024)):
            if attachment.get(key):
                problems += slack_text_problems(f"attachment {key}", attachment[key], limit)
        for key in ("title_link", "image_url", "thumb_url"):
            if attachment.get(key) and not re.match(r"https?://\S+$", attachment[key]):
                problems.append(f"attachment {key} is no URL")
        for field in attachment.get("fields") or []:
            if set(field) - {"title", "value", "short"}:
                problems.append("a field holds more than title, value and short")
        if len(attachment.get("actions") or []) > 5:
            problems.append("more than five actions")
    blocks = list(message.get("blocks") or []) + [item for one in attachments for item in one.get("blocks") or []]
    if len(blocks) > 50:
        problems.append("more than 50 blocks")
    for block in blocks:
        limit = {"header": 150, "section": 3000}.get(block.get("type"), 3000)
        if isinstance(block.get("text"), dict):
            problems += slack_text_problems(f"block {block.get('type')}", block["text"].get("text"), limit)
    return problems


def timestamp_is_iso(value) -> bool:
    try:
        return datetime.datetime.fromisoformat(str(value).replace("Z", "+00:00")).tzinfo is not None
    except ValueError:
        return False


def links_problems(event: dict) -> list[str]:
    problems = []
    for link in event.get("links") or []:
        if not re.match(r"https?://\S+$", str(link.get("href", ""))):
            problems.append("a link has no href")
        if not isinstance(link.get("text", ""), str):
            problems.append("a link's text is no text")
    for image in event.get("images") or []:
        if not str(image.get("src", "")).startswith("https://"):
            problems.append("an image is not served by https")
    return problems


def payload_problems(payload, strings: tuple) -> list[str]:
    if not isinstance(payload, dict):
        return ["'payload' is missing or blank"]
    problems = []
    summary = payload.get("summary")
    if not isinstance(summary, str) or not summary.strip():
        problems.append("'payload.summary' is missing or blank")
    elif len(summary) > 1024:
        problems.append("'payload.summary' is longer than 1024 characters")
    if payload.get("timestamp") is not None and not timestamp_is_iso(payload["timestamp"]):
        problems.append("'payload.timestamp' is no time with a zone")
    for key in strings:
        if not isinstance(payload.get(key, ""), str):
            problems.append(f"'payload.{key}' is not a string")
    if not isinstance(payload.get("custom_details", {}), (dict, str)):
        problems.append("'payload.custom_details' is not an object")
    return problems


def routing_problems(event) -> list[str]:
    if not isinstance(event, dict):
        return ["the event is not an object"]
    if not re.fullmatch(r"[A-Za-z0-9]{32}", str(event.get("routing_key", ""))):
        return ["'routing_key' is not 32 characters"]
    return []


def alert_event_problems(event) -> list[str]:
    """Violations of "Send an Alert Event"."""
    problems = routing_problems(event)
    if not isinstance(event, dict):
        return problems
    action = event.get("event_action")
    if action not in ("trigger", "acknowledge", "resolve"):
        problems.append("'event_action' is none of trigger, acknowledge, resolve")
    key = event.get("dedup_key", "")
    if not isinstance(key, str) or len(key) > 255:
        problems.append("'dedup_key' is no string of up to 255 characters")
    if action in ("acknowledge", "resolve") and not key:
        problems.append("'dedup_key' is missing")
    if action == "trigger":
        payload = event.get("payload")
        problems += payload_problems(payload, ("component", "group", "class"))
        if isinstance(payload, dict):
            if not isinstance(payload.get("source"), str) or not payload["source"].strip():
                problems.append("'payload.source' is missing or blank")
            if payload.get("severity") not in ("critical", "error", "warning", "info"):
                problems.append("'payload.severity' is none of critical, error, warning, info")
    for name in ("client", "client_url"):
        if not isinstance(event.get(name, ""), str):
            problems.append(f"'{name}' is not a string")
    return problems + links_problems(event)


def change_event_problems(event) -> list[str]:
    """Violations of "Send a Change Event"."""
    problems = routing_problems(event)
    if not isinstance(event, dict):
        return problems
    if "event_action" in event or "dedup_key" in event:
        problems.append("a change event has no event_action and no dedup_key")
    return problems + payload_problems(event.get("payload"), ("source",)) + links_problems(event)


# --- the record -------------------------------------------------------------------------------------------------------


class Record:
    """All messages, in memory and as lines of a file."""

    def __init__(self, path: str | None = None):
        self.path, self.messages, self.lock, self.down = path, [], threading.Lock(), {}

    def add(self, receiver: str, problems: list[str], **more) -> dict:
        message = {"at": time.time(), "receiver": receiver, "ok": not problems, "problems": problems, **more}
        with self.lock:
            self.messages.append(message)
            if self.path:
                with open(self.path, "a", encoding="utf-8") as handle:
                    handle.write(json.dumps(message, ensure_ascii=False) + "\n")
        return message

    def of(self, receiver: str = "", since: float = 0) -> list[dict]:
        with self.lock:
            return [one for one in self.messages if receiver in ("", one["receiver"]) and one["at"] >= since]

    def set_down(self, receiver: str, how: str, seconds: float) -> None:
        with self.lock:
            self.down[receiver] = (how, time.monotonic() + seconds)

    def is_down(self, receiver: str) -> str:
        """How it is down now: "", 500, refuse or hang."""
        with self.lock:
            how, until = self.down.get(receiver, ("", 0))
            return how if time.monotonic() < until else ""


# --- HTTP -------------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Common base of all HTTP receivers; `receiver`, `record` come from the server."""

    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *_arguments):
        """A path can be a secret: nothing is printed."""

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def respond(self, status: int, text, kind: str = "text/html") -> None:
        data = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        data = data.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind if isinstance(text, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def is_down(self) -> bool:
        how = self.server.record.is_down(self.server.receiver)
        if not how:
            return False
        data = self.body()
        self.server.record.add(self.server.receiver, [f"down: {how}"], kind="attempt", bytes=len(data))
        if how == "hang":
            time.sleep(30)
        self.close_connection = True
        if how == "500":
            self.respond(500, "internal error")
        else:
            # Refused as near as a listening socket can: the connection is reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
        return True


class Slack(Handler):
    def do_POST(self):
        if self.is_down():
            return
        data, record = self.body(), self.server.record
        if not re.fullmatch(SLACK_PATH, self.path):
            record.add("slack", ["no_service: the path is not that of a webhook"])
            return self.respond(404, "no_service")
        if self.headers.get("Content-Type", "").split(";")[0] != "application/json":
            record.add("slack", ["invalid_payload: Content-Type"])
            return self.respond(400, "invalid_payload")
        try:
            message = json.loads(data)
        except ValueError:
            record.add("slack", ["invalid_payload"])
            return self.respond(400, "invalid_payload")
        problems = slack_problems(message)
        record.add("slack", problems, body=message)
        return self.respond(400 if problems else 200, problems[0] if problems else "ok")


class PagerDuty(Handler):
    def do_POST(self):
        if self.is_down():
            return
        data, record = self.body(), self.server.record
        kinds = {
            "/v2/enqueue": ("alert", alert_event_problems, "Event processed"),
            "/v2/change/enqueue": ("change", change_event_problems, "Change event processed"),
        }
        if self.path not in kinds:
            record.add("pagerduty", ["no such path"])
            return self.respond(404, {"status": "not found"})
        kind, evaluate, output = kinds[self.path]
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        problems = ["the event is larger than 512 KB"] if len(data) > 512 * 1024 else evaluate(event)
        shown = event
        if isinstance(event, dict):
            # A secret: what is kept is that it was there.
            shown = {key: value for key, value in event.items() if key != "routing_key"}
        record.add("pagerduty", problems, kind=kind, body=shown)
        if problems:
            return self.respond(
                400, {"status": "invalid event", "message": "Event object is invalid", "errors": problems}
            )
        response = {"status": "success", "message": output}
        if kind == "alert":
            response["dedup_key"] = event.get("dedup_key") or f"generated-{time.time_ns()}"
        return self.respond(202, response)


class DeadMan(Handler):
    def do_POST(self):
        if self.is_down():
            return
        data = self.body()
        fits = re.fullmatch(DEADMAN_PATH, self.path)
        try:
            body = json.loads(data) if data else None
        except ValueError:
            body = data.decode("utf-8", "replace")
        self.server.record.add("deadman", [] if fits else ["no such path"], body=body)
        self.respond(200 if fits else 404, "OK" if fits else "not found")


class Control(Handler):
    """Takes the receivers down, and returns their messages. On the loopback only."""

    def do_POST(self):
        data = self.body()
        if self.path != "/down":
            return self.respond(404, "not found")
        wanted = json.loads(data)
        names = RECEIVERS if wanted["receiver"] == "all" else (wanted["receiver"],)
        for name in names:
            self.server.record.set_down(name, wanted.get("how", "500"), float(wanted["seconds"]))
        return self.respond(200, "ok")

    def do_GET(self):
        where = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(where.query).items()}
        if where.path != "/messages":
            return self.respond(404, "not found")
        return self.respond(200, self.server.record.of(query.get("receiver", ""), float(query.get("since", 0))))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address, handler, receiver: str, record: Record, context=None):
        self.receiver, self.record, self.context = receiver, record, context
        super().__init__(address, handler)

    def finish_request(self, request, client_address):
        # The handshake belongs to the connection's own thread: a client that sends nothing blocks no other.
        if self.context:
            request.settimeout(10)
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address):
        """A client that hangs up is no event."""


# --- SMTP -------------------------------------------------------------------------------------------------------------


class SMTPSession:
    """One connection, as strict as the RFCs let it be."""

    SIZE = 10 * 1024 * 1024

    def __init__(self, connection, server: SMTPServer):
        self.connection, self.server = connection, server
        self.encrypted = self.user = self.greeted = None
        self.open()

    def open(self):
        self.reader = self.connection.makefile("rb")
        self.sender, self.recipients = None, []

    def reply(self, code: int, *lines: str):
        text = "".join(
            f"{code}{'-' if number < len(lines) - 1 else ' '}{line}\r\n" for number, line in enumerate(lines)
        )
        self.connection.sendall(text.encode())

    def line(self) -> str | None:
        data = self.reader.readline(1002)
        if not data:
            return None
        if not data.endswith(b"\r\n"):
            self.reply(500, "a line ends with CR LF and has up to 998 characters")
            return None
        return data[:-2].decode("utf-8", "replace")

    def run(self):
        self.reply(220, "receivers.test ESMTP")
        while True:
            line = self.line()
            if line is None:
                return
            verb, _, rest = line.partition(" ")
            how = self.server.record.is_down("smtp")
            if how and verb.upper() not in ("QUIT", "EHLO", "STARTTLS"):
                self.server.record.add("smtp", [f"down: {how}"], kind="attempt")
                return self.reply(421, "service not available")
            method = getattr(self, "do_" + verb.lower(), None) if verb.isalpha() else None
            if method is None:
                self.reply(502, "not implemented")
            elif method(rest.strip()) is False:
                return None

    def do_ehlo(self, rest):
        if not rest:
            return self.reply(501, "a name is missing")
        self.greeted = rest
        features = ["receivers.test", f"SIZE {self.SIZE}", "8BITMIME", "SMTPUTF8"]
        if self.server.context and not self.encrypted:
            features.append("STARTTLS")
        if self.server.user and (self.encrypted or not self.server.context):
            features.append("AUTH PLAIN LOGIN")
        return self.reply(250, *features)

    def do_starttls(self, rest):
        if rest or not self.server.context or self.encrypted:
            return self.reply(503, "not now")
        self.reply(220, "go ahead")
        self.connection = self.server.context.wrap_socket(self.connection, server_side=True)
        # Earlier commands count no more (RFC 3207, 4.2).
        self.encrypted, self.greeted, self.user = True, None, None
        return self.open()

    def do_auth(self, rest):
        if not self.server.user or self.user or not self.greeted:
            return self.reply(503, "not now")
        if self.server.context and not self.encrypted:
            return self.reply(538, "encryption required")
        mechanism, _, initial = rest.partition(" ")
        try:
            if mechanism.upper() == "PLAIN":
                parts = self.secret(initial, "").split("\0")
                user, password = (parts + ["", ""])[1:3]
            elif mechanism.upper() == "LOGIN":
                user = self.secret(initial, "Username:")
                password = self.secret("", "Password:")
            else:
                return self.reply(504, "unknown mechanism")
        except (ValueError, binascii.Error):
            return self.reply(501, "not base64")
        if (user, password) != (self.server.user, self.server.password):
            self.server.record.add("smtp", ["authentication failed"], kind="attempt", user=user)
            return self.reply(535, "authentication failed")
        self.user = user
        return self.reply(235, "welcome")

    def secret(self, initial: str, prompt: str) -> str:
        if not initial:
            self.reply(334, base64.b64encode(prompt.encode()).decode())
            initial = self.line() or ""
        return base64.b64decode("" if initial == "=" else initial, validate=True).decode()

    def may_send(self) -> bool:
        if not self.greeted:
            self.reply(503, "EHLO first")
        elif self.server.context and self.server.require_tls and not self.encrypted:
            self.reply(530, "STARTTLS first")
        elif self.server.user and not self.user:
            self.reply(530, "authentication required")
        else:
            return True
        return False

    def do_mail(self, rest):
        match = re.match(r"(?i)FROM:\s*<([^<>\s]*)>(.*)$", rest)
        if not self.may_send():
            return None
        if not match:
            return self.reply(501, "FROM:<address>")
        self.sender, self.recipients = match[1], []
        return self.reply(250, "ok")

    def do_rcpt(self, rest):
        match = re.match(r"(?i)TO:\s*<([^<>\s@]+@[^<>\s@]+)>", rest)
        if self.sender is None:
            return self.reply(503, "MAIL first")
        if not match:
            return self.reply(501, "TO:<address>")
        self.recipients.append(match[1])
        return self.reply(250, "ok")

    def do_data(self, _rest):
        if not self.recipients:
            return self.reply(503, "RCPT first")
        self.reply(354, "go ahead")
        lines, size, problems = [], 0, []
        while True:
            data = self.reader.readline(65536)
            if not data:
                return False
            if data == b".\r\n":
                break
            if not data.endswith(b"\r\n") or len(data) > 1000:
                problems.append("a line does not end with CR LF, or is longer than 998 characters")
            lines.append(data[1:] if data.startswith(b".") else data)
            size += len(data)
        if size > self.SIZE:
            problems.append("too large")
        problems += mail_problems(b"".join(lines))
        self.server.record.add(
            "smtp", problems, **mail_as_dict(b"".join(lines)), sender=self.sender,
            recipients=self.recipients, encrypted=bool(self.encrypted), user=self.user,
        )  # fmt: skip
        self.sender, self.recipients = None, []
        return self.reply(554, *problems) if problems else self.reply(250, "accepted")

    def do_rset(self, _rest):
        self.sender, self.recipients = None, []
        self.reply(250, "ok")

    def do_noop(self, _rest):
        self.reply(250, "ok")

    def do_quit(self, _rest):
        self.reply(221, "bye")
        return False


def mail_as_dict(data: bytes) -> dict:
    """Headers, both texts and the attachments of a mail, decoded."""
    message = email.message_from_bytes(data, policy=email.policy.default)
    texts = {}
    for kind in ("plain", "html"):
        part = message.get_body(preferencelist=(kind,))
        texts[kind] = part.get_content() if part else ""
    attached = {part.get_filename(): part.get_content() for part in message.iter_attachments()}
    return {"headers": {key.lower(): str(value) for key, value in message.items()}, **texts, "attached": attached}


def mail_problems(data: bytes) -> list[str]:
    """RFC 5322: what a mail has to have."""
    message = email.message_from_bytes(data, policy=email.policy.default)
    problems = [f"no {name}" for name in ("From", "Date", "Subject", "Message-ID") if not message[name]]
    header = data.split(b"\r\n\r\n")[0]
    if any(byte > 127 for byte in header):
        problems.append("the header holds characters that are not ASCII")
    return problems + [str(defect) for part in message.walk() for defect in part.defects]


class SMTPServer:
    def __init__(self, address, record: Record, context=None, user="", password="", require_tls=True):
        self.record, self.context, self.user, self.password = record, context, user, password
        self.require_tls = require_tls
        self.socket = socket.create_server(address, backlog=64)
        self.port = self.socket.getsockname()[1]

    def serve_forever(self):
        while True:
            try:
                connection, _peer = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        connection.settimeout(60)
        try:
            if self.record.is_down("smtp") == "refuse":
                self.record.add("smtp", ["down: refuse"], kind="attempt")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return
            session = SMTPSession(connection, self)
            session.run()
            connection = session.connection
        except OSError:
            # A client that hangs up is no event.
            return
        finally:
            connection.close()

    def close(self):
        # Closing alone would leave accept() waiting.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


# --- all of them ------------------------------------------------------------------------------------------------------


class Receivers:
    """All receivers in threads of this process; ports of 0 are chosen by the kernel."""

    def __init__(
        self, log=None, host="127.0.0.1", ports=(0, 0, 0, 0, 0), certificate="", key="", http_tls=False, user="",
        password="",
    ):  # fmt: skip
        context = None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
        self.record = Record(log)
        self.smtp = SMTPServer((host, ports[0]), self.record, context, user, password)
        http = context if http_tls else None
        handlers = (("slack", Slack), ("pagerduty", PagerDuty), ("deadman", DeadMan))
        self.http = [
            Server((host, port), handler, name, self.record, http)
            for port, (name, handler) in zip(ports[1:4], handlers)
        ]
        self.http.append(Server(("127.0.0.1", ports[4]), Control, "control", self.record))
        self.ports = {server.receiver: server.server_address[1] for server in self.http}
        self.ports["smtp"] = self.smtp.port

    def start(self):
        for server in (self.smtp, *self.http):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def stop(self):
        self.smtp.close()
        for server in self.http:
            server.shutdown()
            server.server_close()


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--log", required=True, help="file that gets one line of JSON for each message")
    parser.add_argument("--host", default="127.0.0.1")
    for name, port in (("smtp", 9587), ("slack", 9591), ("pagerduty", 9592), ("deadman", 9593), ("control", 9590)):
        parser.add_argument(f"--{name}-port", type=int, default=port)
    parser.add_argument("--certificate", default="", help="for STARTTLS, and with --http-tls for HTTP")
    parser.add_argument("--key", default="")
    parser.add_argument("--http-tls", action="store_true")
    parser.add_argument("--smtp-user", default="")
    parser.add_argument("--smtp-password-file", default="")
    options = parser.parse_args(arguments)
    password = ""
    if options.smtp_password_file:
        with open(options.smtp_password_file, encoding="utf-8") as handle:
            password = handle.read().strip()
    receivers = Receivers(
        options.log, options.host,
        (options.smtp_port, options.slack_port, options.pagerduty_port, options.deadman_port, options.control_port),
        options.certificate, options.key, options.http_tls, options.smtp_user, password,
    ).start()  # fmt: skip
    print(json.dumps(receivers.ports), flush=True)
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A load generator whose count of failed requests is reliable.

One file, standard library only, Python 3.11 or later. It uses HTTP/1.1 over its own sockets: no retry (except with
--repeat-unanswered), no hidden second attempt, no redirect that is followed. A failed request is any status but the
expected one, a refused, reset or cut connection, and a timeout. Writes carry values of their own; in the end they are
read back, and one that was acknowledged and is not there is a lost write.

    loadgen.py scenario.json --clients 64 --seconds 60 --think-seconds 0.2
    loadgen.py scenario.json --clients 64 --seconds 60 --rate 40 --marks marks.jsonl --results results.jsonl

Without --rate every client sends a request, waits, pauses, and repeats. With --rate requests are due at fixed
times, whether or not the server is slow, and a latency is counted from the time at which the request was due: a
server that stands still for a second shows it in every request that had to wait.

Other processes may append lines such as {"t": 1790000000.1, "name": "deploy-start"} to the marks file. A pair
"x-start", "x-end" is a window; the summary has the metrics of the requests inside and outside of each.

SIGTERM or SIGINT ends the run early; requests in flight are finished and the summary is written.
Exit status: 0 nothing failed, 1 requests failed or writes were lost, 2 wrong input, 3 the run could not begin.

The scenario file, all paths relative to the base:
    base            "https://shift.example.jp"
    connect         "127.0.0.1:443", where to connect to instead of the base's host
    verify          whether the certificate is verified (true); ca_file: by which authorities
    headers         sent with every request
    version         the version in a response: {"header": name} or {"pattern": regular expression}
    login           page, user_field, password_field, csrf_field, session_cookie, username, password_env, expect
    values          lists for the placeholders of paths and forms (see below)
    requests        a list: name, kind (read, static, write, ...), method, path, form, expect, weight,
                    csrf_page (a page that gives the token, otherwise the cookie's is sent),
                    links (a regular expression; its first group is a path that "{link}" requests choose from),
                    read_back {"path": ..., "pattern": ...}: where an acknowledged write must be found

A placeholder {name} takes the next value of values[name]: a list, {"range": [1, 28], "format": "%02d"},
{"months_from": "2031-01", "count": 600} or {"page": path, "pattern": regular expression} (read once, after login).
Values advance like the digits of a counter, in the order of the file, so every write of a run has a combination of
its own. "vary" holds further lists from which a value is drawn by the write's number alone. {name_number} is the
place of a value in its list, from 1. {unique} is a text that no other write has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import html
import json
import os
import random
import re
import select
import signal
import ssl
import sys
import time
import urllib.parse
from dataclasses import dataclass, field

PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
MAX_BODY = 32 * 1024 * 1024


class WrongInput(Exception):
    """The scenario or an option cannot be used."""


class Failed(Exception):
    """A request that got no usable response; the text is its class."""


class Unanswered(Failed):
    """A kept connection was closed before a byte of the response."""


# --- HTTP ------------------------------------------------------------------------------------------------------------


@dataclass
class Response:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name.lower()), "")

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


@dataclass
class Target:
    host: str
    port: int
    authority: str
    origin: str
    tls: ssl.SSLContext | None
    server_name: str


class Connection:
    """One connection, one request at a time. It sends nothing twice."""

    def __init__(self, target: Target):
        self.target = target
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.used = 0

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(
            self.target.host,
            self.target.port,
            ssl=self.target.tls,
            server_hostname=self.target.server_name if self.target.tls else None,
            limit=256 * 1024,
        )
        self.used = 0

    async def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort() if self.target.tls else self.writer.close()
        self.reader = self.writer = None

    def is_open(self) -> bool:
        # A server may end an idle connection; one whose end has already arrived is not used again, as browsers do it.
        # On a busy machine the event loop may not have seen it yet: the socket knows.
        if self.writer is None or self.reader.at_eof() or self.writer.is_closing():
            return False
        poll = select.poll()
        poll.register(self.writer.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    async def exchange(self, head: bytes, body: bytes, method: str) -> Response:
        try:
            if not self.is_open():
                await self.close()
                await self.open()
            self.used += 1
            self.writer.write(head + body)
            await self.writer.drain()
            return await self.receive(method)
        except ConnectionRefusedError:
            raise Failed("refused") from None
        except (ConnectionResetError, BrokenPipeError, ConnectionAbortedError):
            raise Failed("reset" if self.used <= 1 else "reset on a kept connection") from None
        except asyncio.IncompleteReadError as exc:
            if not exc.partial and self.used > 1:
                raise Unanswered("closed a kept connection without a response") from None
            raise Failed("cut off" if exc.partial else "closed without a response") from None
        except asyncio.LimitOverrunError:
            raise Failed("bad response: header too long") from None
        except ssl.SSLError as exc:
            raise Failed(f"tls: {exc.reason or exc}") from None
        except OSError as exc:
            raise Failed(f"network: {exc.strerror or exc}") from None
        except ValueError as exc:
            raise Failed(f"bad response: {exc}") from None

    async def receive(self, method: str) -> Response:
        reader = self.reader
        while True:
            raw = await reader.readuntil(b"\r\n\r\n")
            lines = raw.decode("latin-1").split("\r\n")
            match = re.fullmatch(r"HTTP/1\.([01]) (\d{3})(?: .*)?", lines[0])
            if not match:
                raise ValueError(f"{lines[0][:60]!r} is no status line")
            status = int(match[2])
            if status >= 200:
                break
        headers = []
        for line in lines[1:]:
            if line:
                name, separator, value = line.partition(":")
                if not separator:
                    raise ValueError("a header without a colon")
                headers.append((name.strip().lower(), value.strip()))
        response = Response(status, headers, b"")
        closing = "close" in response.header("connection").lower() or match[1] == "0"
        if method == "HEAD" or status in (204, 304):
            pass
        elif "chunked" in response.header("transfer-encoding").lower():
            response.body = await self.chunks()
        elif response.header("content-length"):
            length = int(response.header("content-length"))
            if not 0 <= length <= MAX_BODY:
                raise ValueError(f"a body of {length} bytes")
            response.body = await reader.readexactly(length)
        else:
            response.body = await reader.read(MAX_BODY)
            closing = True
        if closing:
            await self.close()
        return response

    async def chunks(self) -> bytes:
        parts, total = [], 0
        while True:
            size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0].strip(), 16)
            total += size
            if total > MAX_BODY:
                raise ValueError("a body that does not end")
            if size == 0:
                while await self.reader.readuntil(b"\r\n") != b"\r\n":
                    pass
                return b"".join(parts)
            parts.append(await self.reader.readexactly(size))
            if await self.reader.readexactly(2) != b"\r\n":
                raise ValueError("a chunk without its end")


@dataclass
class Session:
    """Cookies of one login. Several clients may share it, as tabs of a browser do."""

    cookies: dict[str, str] = field(default_factory=dict)

    def take(self, response: Response) -> None:
        for name, value in response.headers:
            if name != "set-cookie":
                continue
            pair, *attributes = value.split(";")
            key, _, content = pair.strip().partition("=")
            gone = any(re.fullmatch(r"\s*max-age\s*=\s*(0|-\d+)\s*", text, re.I) for text in attributes)
            if gone:
                self.cookies.pop(key, None)
            else:
                self.cookies[key] = content

    def header(self) -> str:
        return "; ".join(f"{key}={value}" for key, value in self.cookies.items())


# --- The scenario ----------------------------------------------------------------------------------------------------


@dataclass
class Action:
    name: str
    kind: str
    method: str
    path: str
    expect: frozenset[int]
    weight: float
    form: dict[str, str] | None = None
    csrf_page: str = ""
    links: re.Pattern | None = None
    read_back: dict | None = None

    @classmethod
    def parse(cls, raw: dict) -> Action:
        try:
            form = raw.get("form")
            method = raw.get("method", "POST" if form is not None else "GET")
            expect = raw.get("expect", [200])
            known = {"name", "kind", "method", "path", "expect", "weight", "form", "csrf_page", "links", "read_back"}
            if set(raw) - known:
                raise WrongInput(f"a request has unknown keys: {', '.join(sorted(set(raw) - known))}")
            return cls(
                name=raw["name"],
                kind=raw.get("kind", "write" if form is not None else "read"),
                method=method,
                path=raw["path"],
                expect=frozenset([expect] if isinstance(expect, int) else expect),
                weight=float(raw.get("weight", 1)),
                form=form,
                csrf_page=raw.get("csrf_page", ""),
                links=re.compile(raw["links"]) if raw.get("links") else None,
                read_back=raw.get("read_back"),
            )
        except KeyError as exc:
            raise WrongInput(f"a request lacks {exc}") from None
        except re.error as exc:
            raise WrongInput(f"{raw.get('name')}: {exc}") from None


def expand(spec, where: str) -> list[str]:
    """A list of values out of the scenario's short forms."""
    if isinstance(spec, list) and spec:
        return [str(item) for item in spec]
    if isinstance(spec, dict) and "range" in spec:
        first, last = spec["range"]
        return [spec.get("format", "%d") % number for number in range(first, last + 1)]
    if isinstance(spec, dict) and "months_from" in spec:
        year, month = (int(part) for part in spec["months_from"].split("-"))
        start = year * 12 + month - 1
        return [f"{n // 12}-{n % 12 + 1:02}" for n in range(start, start + int(spec.get("count", 12)))]
    raise WrongInput(f"values.{where} is neither a list, a range, months nor a page with a pattern")


class Values:
    """Combinations for placeholders: the n-th is always the same, and no two are alike until all are used."""

    def __init__(self, lists: dict[str, list[str]], vary: dict[str, list[str]], seed: str):
        self.lists, self.vary, self.seed = lists, vary, seed
        self.total = 1
        for values in lists.values():
            self.total *= len(values)
        # Runs begin at different places, so one does not find what another has written.
        self.offset = int(hashlib.sha256(seed.encode()).hexdigest()[:12], 16) % self.total
        self.used = 0

    def next(self) -> dict[str, str]:
        number = self.used
        self.used += 1
        if self.used > self.total and self.lists:
            raise WrongInput(f"the {self.total} combinations of values are used up; the scenario needs longer lists")
        return self.combination(number)

    def combination(self, number: int) -> dict[str, str]:
        found = {"unique": f"{self.seed}-{number}", "n": str(number)}
        place = (self.offset + number) % self.total
        for name, values in self.lists.items():
            place, digit = divmod(place, len(values))
            found[name] = values[digit]
            found[name + "_number"] = str(digit + 1)
        for name, values in self.vary.items():
            drawn = int(hashlib.sha256(f"{self.seed}/{number}/{name}".encode()).hexdigest()[:8], 16)
            found[name] = values[drawn % len(values)]
        return found


def fill(template: str, values: dict[str, str], escape=lambda text: text) -> str:
    """Put values into {name}; braces that name no value stay (regular expressions have them)."""
    return PLACEHOLDER.sub(lambda m: escape(values[m[1]]) if m[1] in values else m[0], template)


def find_csrf(text: str, name: str) -> str:
    for tag in re.findall(r"<input\b[^>]*>", text):
        if re.search(rf"""\bname=["']{re.escape(name)}["']""", tag):
            value = re.search(r"""\bvalue=["']([^"']*)["']""", tag)
            return html.unescape(value[1]) if value else ""
    return ""


# --- Metrics ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Result:
    t: float  # when it was due (open loop) or sent (closed loop), seconds since the epoch
    kind: str
    name: str
    status: int
    ms: float
    error: str
    version: str

    @property
    def ok(self) -> bool:
        return not self.error

    def line(self) -> str:
        entry = {
            "t": round(self.t, 4),
            "kind": self.kind,
            "name": self.name,
            "status": self.status,
            "ms": round(self.ms, 2),
            "error": self.error,
        }
        if self.version:
            entry["version"] = self.version
        return json.dumps(entry, ensure_ascii=False)


def percentile(ordered: list[float], share: float) -> float | None:
    """Nearest rank: a value that was really measured."""
    if not ordered:
        return None
    rank = max(1, -(-len(ordered) * share // 100))
    return round(ordered[int(rank) - 1], 2)


def metrics(results: list[Result]) -> dict:
    """Latencies are those of the completed requests; a failure is counted, not averaged."""
    good = sorted(result.ms for result in results if result.ok)
    errors: dict[str, int] = {}
    for result in results:
        if not result.ok:
            errors[result.error] = errors.get(result.error, 0) + 1
    return {
        "requests": len(results),
        "failed": len(results) - len(good),
        "errors": dict(sorted(errors.items(), key=lambda item: -item[1])),
        "p50_ms": percentile(good, 50),
        "p95_ms": percentile(good, 95),
        "p99_ms": percentile(good, 99),
        "max_ms": round(good[-1], 2) if good else None,
    }


def read_marks(path: str) -> list[dict]:
    marks = []
    try:
        with open(path, encoding="utf-8") as handle:
            for line in handle:
                try:
                    entry = json.loads(line)
                    marks.append({"t": float(entry["t"]), "name": str(entry["name"])})
                except (ValueError, KeyError, TypeError):
                    continue
    except OSError:
        return []
    return sorted(marks, key=lambda mark: mark["t"])


def windows_of(marks: list[dict], end: float) -> dict[str, list[tuple[float, float]]]:
    """Pairs of x-start and x-end; one that was never ended lasts until the end of the run."""
    opened: dict[str, float] = {}
    found: dict[str, list[tuple[float, float]]] = {}
    for mark in marks:
        name, _, edge = mark["name"].rpartition("-")
        if edge == "start":
            opened.setdefault(name, mark["t"])
        elif edge == "end" and name in opened:
            found.setdefault(name, []).append((opened.pop(name), mark["t"]))
    for name, start in opened.items():
        found.setdefault(name, []).append((start, end))
    return found


def summarize(results: list[Result], marks: list[dict], started: float, ended: float) -> dict:
    summary = {
        "started": round(started, 3),
        "seconds": round(ended - started, 2),
        **metrics(results),
        "requests_per_second": round(len(results) / (ended - started), 2) if ended > started else None,
        "by_kind": {
            kind: metrics([r for r in results if r.kind == kind])
            for kind in sorted({result.kind for result in results})
        },
        "versions": {},
        "marks": marks,
        "windows": {},
    }
    for result in results:
        if result.version:
            seen = summary["versions"].setdefault(
                result.version, {"requests": 0, "first": round(result.t, 3), "last": round(result.t, 3)}
            )
            seen["requests"] += 1
            seen["first"] = min(seen["first"], round(result.t, 3))
            seen["last"] = max(seen["last"], round(result.t, 3))
    for name, spans in windows_of(marks, ended).items():

        def inside(result, spans=spans):
            return any(result.t <= end and result.t + result.ms / 1000 >= start for start, end in spans)

        within = metrics([result for result in results if inside(result)])
        without = metrics([result for result in results if not inside(result)])
        ratio = None
        if within["p99_ms"] and without["p99_ms"]:
            ratio = round(within["p99_ms"] / without["p99_ms"], 3)
        summary["windows"][name] = {
            "spans": [[round(start, 3), round(end, 3)] for start, end in spans],
            "seconds": round(sum(end - start for start, end in spans), 2),
            "inside": within,
            "outside": without,
            "p99_ratio": ratio,
        }
    return summary


# --- The run ---------------------------------------------------------------------------------------------------------


class Run:
    def __init__(self, scenario: dict, options: argparse.Namespace):
        self.scenario, self.options = scenario, options
        self.target = make_target(scenario)
        self.actions = [Action.parse(raw) for raw in scenario.get("requests", [])]
        if not self.actions or not any(action.weight > 0 for action in self.actions):
            raise WrongInput("the scenario has no requests")
        self.login = scenario.get("login")
        version = scenario.get("version", {})
        self.version_header = version.get("header", "").lower()
        self.version_pattern = re.compile(version["pattern"].encode()) if version.get("pattern") else None
        self.extra = "".join(f"{name}: {value}\r\n" for name, value in scenario.get("headers", {}).items())
        self.seed = options.seed or f"{int(time.time() * 1000):x}"
        self.random = random.Random(self.seed)
        self.values = Values({}, {}, self.seed)
        self.sessions: list[Session] = []
        self.links: dict[str, str] = {}
        self.results: list[Result] = []
        self.acknowledged: list[tuple[str, str, str]] = []
        self.stop = asyncio.Event()
        self.stopped_by = "time"
        self.begun, self.repeated = 0, 0
        self.fatal = ""
        self.sink = open(options.results, "w", encoding="utf-8", buffering=1 << 16) if options.results else None

    # -- single requests ----------------------------------------------------------------------------------------------
    async def send(
        self, connection: Connection, session: Session, method: str, path: str, form: dict[str, str] | None = None
    ) -> Response:
        body = urllib.parse.urlencode(form).encode() if form is not None else b""
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {self.target.authority}",
            "Accept: text/html,*/*",
            "User-Agent: shiftmaster-loadgen",
        ]
        if session.cookies:
            lines.append(f"Cookie: {session.header()}")
        if form is not None:
            lines += [
                "Content-Type: application/x-www-form-urlencoded",
                f"Origin: {self.target.origin}",
                f"Referer: {self.target.origin}{path}",
            ]
        if form is not None or method not in ("GET", "HEAD"):
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines) + "\r\n" + self.extra + "\r\n"
        try:
            async with asyncio.timeout(self.options.timeout):
                response = await connection.exchange(head.encode(), body, method)
        except TimeoutError:
            await connection.close()
            raise Failed("timeout") from None
        except Failed as exc:
            await connection.close()
            if self.options.repeat_unanswered and isinstance(exc, Unanswered):
                self.repeated += 1  # On a new connection, which cannot end this way.
                return await self.send(connection, session, method, path, form)
            raise
        session.take(response)
        return response

    def record(self, t: float, kind: str, name: str, status: int, ms: float, error: str, version: str = "") -> None:
        result = Result(t, kind, name, status, ms, error, version)
        self.results.append(result)
        if self.sink:
            self.sink.write(result.line() + "\n")

    def version_of(self, response: Response) -> str:
        if self.version_header:
            return response.header(self.version_header)
        if self.version_pattern:
            match = self.version_pattern.search(response.body)
            return match[1].decode("utf-8", "replace") if match else ""
        return ""

    async def perform(self, connection: Connection, session: Session, due: float | None = None) -> None:
        """One request of the mix, from its choice to its record."""
        action = self.random.choices(self.actions, [a.weight for a in self.actions])[0]
        if "{link}" in action.path and not self.links:
            action = next((a for a in self.actions if a.links), action)
        values = {"link": self.random.choice(list(self.links.values()))} if self.links else {}
        try:
            # A read may be repeated; a write's values are its own.
            values |= (
                self.values.next()
                if action.form is not None
                else self.values.combination(self.random.randrange(1 << 30))
            )
        except WrongInput as exc:
            self.fatal = str(exc)
            self.finish("values used up")
            return
        path = fill(action.path, values, lambda text: urllib.parse.quote(text, safe="/:.-_~%"))
        form = None
        status, error, version = 0, "", ""
        wall, start = time.time(), time.monotonic()
        if due is not None:
            wall, start = wall - (start - due), due
        response = None
        try:
            if action.form is not None:
                form = {key: fill(text, values) for key, text in action.form.items()}
                if self.login and self.login.get("csrf_field"):
                    form[self.login["csrf_field"]] = await self.token(connection, session, action, values)
            if due is None:
                wall, start = time.time(), time.monotonic()
            response = await self.send(connection, session, action.method, path, form)
            status = response.status
            version = self.version_of(response)
            if status not in action.expect:
                error = f"status {status}"
        except Failed as exc:
            error = str(exc)
        self.record(wall, action.kind, action.name, status, (time.monotonic() - start) * 1000, error, version)
        if error or response is None:
            return
        if action.links:
            for found in action.links.findall(response.text):
                found = html.unescape(found)
                self.links.setdefault(found, found)
            while len(self.links) > 200:
                self.links.pop(next(iter(self.links)))
        if action.read_back:
            self.acknowledged.append(
                (
                    fill(action.read_back["path"], values, lambda text: urllib.parse.quote(text, safe="/:.-_~%")),
                    fill(action.read_back["pattern"], values, re.escape),
                    values["unique"],
                )
            )

    async def token(self, connection: Connection, session: Session, action: Action, values: dict[str, str]) -> str:
        """A token for a form: out of its page where the scenario sets it, otherwise the cookie's (Django takes it)."""
        if not action.csrf_page:
            return session.cookies.get(self.login.get("csrf_cookie", "csrftoken"), "")
        wall, start, error, status = time.time(), time.monotonic(), "", 0
        try:
            page = await self.send(connection, session, "GET", fill(action.csrf_page, values))
            status = page.status
            found = find_csrf(page.text, self.login["csrf_field"])
            if status != 200 or not found:
                error = f"status {status}" if status != 200 else "no CSRF token in the page"
        except Failed as exc:
            error = str(exc)
        self.record(wall, "read", f"{action.name} form", status, (time.monotonic() - start) * 1000, error)
        if error:
            raise Failed("the form's page failed")
        return found

    # -- beginning ----------------------------------------------------------------------------------------------------
    async def log_in(self) -> Session:
        login, session, connection = self.login, Session(), Connection(self.target)
        password = os.environ.get(login["password_env"], "")
        if not password:
            raise WrongInput(f"the environment has no {login['password_env']}")
        csrf = login.get("csrf_field", "")
        try:
            page = await self.send(connection, session, "GET", login["page"])
            if page.status != 200:
                raise Failed(f"the login page returns {page.status}")
            form = {
                login.get("user_field", "username"): login["username"],
                login.get("password_field", "password"): password,
            }
            if csrf:
                form[csrf] = find_csrf(page.text, csrf)
            reply = await self.send(connection, session, "POST", login.get("action", login["page"]), form)
            expected = login.get("expect", [302])
            if reply.status not in expected:
                raise Failed(f"the login returns {reply.status}, not {expected}")
            cookie = login.get("session_cookie", "sessionid")
            if cookie not in session.cookies:
                raise Failed(f"the login sets no cookie {cookie}")
            return session
        finally:
            await connection.close()

    async def begin(self) -> None:
        if self.login:
            count = min(self.options.logins, self.options.clients)
            gate = asyncio.Semaphore(4)

            async def one():
                async with gate:
                    return await self.log_in()

            self.sessions = list(await asyncio.gather(*(one() for _ in range(count))))
        else:
            self.sessions = [Session() for _ in range(self.options.clients)]
        lists = {}
        for name, spec in self.scenario.get("values", {}).items():
            if isinstance(spec, dict) and "page" in spec:
                lists[name] = await self.values_from_page(name, spec)
            else:
                lists[name] = expand(spec, name)
        vary = {name: expand(spec, name) for name, spec in self.scenario.get("vary", {}).items()}
        self.values = Values(lists, vary, self.seed)

    async def values_from_page(self, name: str, spec: dict) -> list[str]:
        connection = Connection(self.target)
        try:
            page = await self.send(connection, self.sessions[0], "GET", spec["page"])
        finally:
            await connection.close()
        found = list(dict.fromkeys(re.findall(spec["pattern"], page.text)))
        if page.status != 200 or not found:
            raise Failed(f"values.{name}: {spec['page']} returns {page.status} with {len(found)} matches")
        return found

    # -- the two kinds of load ----------------------------------------------------------------------------------------
    def may_begin(self) -> bool:
        if self.stop.is_set() or self.begun >= self.options.max_requests:
            return False
        self.begun += 1
        return True

    def finish(self, why: str) -> None:
        if not self.stop.is_set():
            self.stopped_by = why
            self.stop.set()

    async def pause(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), seconds)

    async def after(self, connection: Connection) -> None:
        if connection.used >= self.options.requests_per_connection:
            await connection.close()

    async def closed_client(self, number: int) -> None:
        connection, session = Connection(self.target), self.sessions[number % len(self.sessions)]
        think = self.options.think_seconds
        await self.pause(self.random.uniform(0, max(think, 0.2)))
        while self.may_begin():
            await self.perform(connection, session)
            await self.after(connection)
            await self.pause(self.random.uniform(0.5, 1.5) * think)
        await connection.close()

    async def arrivals(self, queue: asyncio.Queue) -> None:
        start, number = time.monotonic(), 0
        while self.may_begin():
            due = start + number / self.options.rate
            number += 1
            await self.pause(due - time.monotonic())
            if self.stop.is_set():
                self.begun -= 1
                break
            queue.put_nowait(due)
        for _ in range(self.options.clients):
            queue.put_nowait(None)

    async def open_client(self, number: int, queue: asyncio.Queue) -> None:
        connection, session = Connection(self.target), self.sessions[number % len(self.sessions)]
        while (due := await queue.get()) is not None:
            await self.perform(connection, session, due)
            await self.after(connection)
        await connection.close()

    async def load(self) -> None:
        options = self.options
        queue: asyncio.Queue = asyncio.Queue()
        if options.rate:
            tasks = [asyncio.create_task(self.open_client(n, queue)) for n in range(options.clients)]
            tasks.append(asyncio.create_task(self.arrivals(queue)))
        else:
            tasks = [asyncio.create_task(self.closed_client(n)) for n in range(options.clients)]
        timer = asyncio.create_task(self.pause(options.seconds))
        pending = set(tasks)
        while pending and not timer.done():
            done, pending = await asyncio.wait({*pending, timer}, return_when=asyncio.FIRST_COMPLETED)
            pending.discard(timer)
            for task in done - {timer}:
                task.result()
        if not pending and not self.stop.is_set():
            self.finish("max-requests")
        self.finish("time")
        timer.cancel()
        # Requests in flight are finished; a due request that was never sent is a failure, not an omission.
        if pending:
            _, late = await asyncio.wait(pending, timeout=options.timeout + 5)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        now = time.monotonic()
        while not queue.empty():
            due = queue.get_nowait()
            if due is not None:
                self.record(time.time() - (now - due), "none", "never sent", 0, (now - due) * 1000, "never sent")

    # -- the end ------------------------------------------------------------------------------------------------------
    async def read_back(self) -> dict:
        """Look for every acknowledged write. Pages are requested once each, with one second attempt."""
        by_path: dict[str, list[tuple[str, str]]] = {}
        for path, pattern, unique in self.acknowledged:
            by_path.setdefault(path, []).append((pattern, unique))
        outcome = {"acknowledged": len(self.acknowledged), "found": 0, "lost": [], "unread": []}
        gate = asyncio.Semaphore(4)

        async def check(path, writes):
            async with gate:
                connection = Connection(self.target)
                page = None
                for attempt in (1, 2):
                    with contextlib.suppress(Failed):
                        page = await self.send(connection, self.sessions[0], "GET", path)
                        if page.status == 200:
                            break
                    if attempt == 1:
                        await asyncio.sleep(1)
                await connection.close()
                for pattern, unique in writes:
                    if page is None or page.status != 200:
                        outcome["unread"].append({"path": path, "write": unique})
                    elif re.search(pattern, page.text, re.S):
                        outcome["found"] += 1
                    else:
                        outcome["lost"].append({"path": path, "write": unique, "pattern": pattern})

        await asyncio.gather(*(check(path, writes) for path, writes in by_path.items()))
        outcome["lost_count"], outcome["unread_count"] = len(outcome["lost"]), len(outcome["unread"])
        outcome["lost"], outcome["unread"] = outcome["lost"][:20], outcome["unread"][:20]
        return outcome

    async def run(self) -> tuple[int, dict]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.finish, signal.Signals(number).name)
        try:
            await self.begin()
        except Failed as exc:
            return 3, {"error": f"the run could not begin: {exc}"}
        started = time.time()
        if self.options.ready_file:
            with open(self.options.ready_file, "w", encoding="utf-8") as handle:
                handle.write(f"{os.getpid()}\n")
        await self.load()
        ended = time.time()
        marks = read_marks(self.options.marks) if self.options.marks else []
        summary = {
            "stopped_by": self.stopped_by,
            "seed": self.seed,
            "clients": self.options.clients,
            "mode": f"open, {self.options.rate:g}/s" if self.options.rate else "closed",
            "repeated": self.repeated,
        }
        summary |= summarize(self.results, marks, started, ended)
        if self.fatal:
            summary["error"] = self.fatal
        summary["writes"] = (
            await self.read_back() if not self.options.no_read_back else {"acknowledged": len(self.acknowledged)}
        )
        if self.sink:
            self.sink.close()
        lost = summary["writes"].get("lost_count", 0) + summary["writes"].get("unread_count", 0)
        bad = summary["failed"] or lost or not summary["requests"]
        return (2 if self.fatal else 1 if bad else 0), summary


def make_target(scenario: dict) -> Target:
    base = urllib.parse.urlsplit(scenario.get("base", ""))
    if base.scheme not in ("http", "https") or not base.hostname:
        raise WrongInput("the scenario's base must be an http or https address")
    port = base.port or (443 if base.scheme == "https" else 80)
    host = base.hostname
    if scenario.get("connect"):
        host, _, number = scenario["connect"].rpartition(":")
        host = host.strip("[]")
        if not host or not number.isdigit():
            raise WrongInput("the scenario's connect must be host:port")
        port = int(number)
    tls = None
    if base.scheme == "https":
        tls = ssl.create_default_context(cafile=scenario.get("ca_file"))
        if not scenario.get("verify", True):
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    return Target(host, port, base.netloc, f"{base.scheme}://{base.netloc}", tls, base.hostname)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="The module's docstring describes the scenario file."
    )
    parser.add_argument("scenario", help="scenario file (JSON)")
    parser.add_argument("--base", help="instead of the scenario's base")
    parser.add_argument("--connect", help="instead of the scenario's connect (host:port)")
    parser.add_argument("--clients", type=int, default=8, help="connections at the same time (8)")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second that are due, all clients together")
    parser.add_argument("--think-seconds", type=float, default=0.2, help="mean pause of a client without --rate (0.2)")
    parser.add_argument("--seconds", type=float, default=30.0, help="end of the load (30)")
    parser.add_argument("--max-requests", type=int, default=1_000_000, help="end of the load by count (1000000)")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds for one request, connecting included (15)")
    parser.add_argument("--logins", type=int, default=4, help="sessions that the clients share (4)")
    parser.add_argument("--requests-per-connection", type=int, default=500, help="then a new one (500)")
    parser.add_argument(
        "--repeat-unanswered", action="store_true",
        help="repeat once, as browsers do, where a kept connection is closed without a response",
    )  # fmt: skip
    parser.add_argument("--marks", help="file with marks of other processes (JSON lines)")
    parser.add_argument("--results", help="file for each request's result (JSON lines)")
    parser.add_argument("--summary", help="file for the summary; it is printed in any case")
    parser.add_argument("--ready-file", help="file that is written when the logins are done and the load begins")
    parser.add_argument("--no-read-back", action="store_true", help="do not look for the acknowledged writes")
    parser.add_argument("--seed", default="", help="makes the choice of requests and values the same again")
    options = parser.parse_args(argv)
    if options.clients < 1 or options.logins < 1 or options.seconds <= 0 or options.timeout <= 0 or options.rate < 0:
        parser.error("clients, logins, seconds and timeout must be above zero, rate not below")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    try:
        with open(options.scenario, encoding="utf-8") as handle:
            scenario = json.load(handle)
        for name in ("base", "connect"):
            if getattr(options, name):
                scenario[name] = getattr(options, name)

        async def go():
            return await Run(scenario, options).run()

        code, summary = asyncio.run(go())
    except (WrongInput, OSError, ValueError, KeyError) as exc:
        print(f"loadgen: {type(exc).__name__ if not str(exc) else exc}", file=sys.stderr)
        return 2
    text = json.dumps(summary, ensure_ascii=False, indent=1)
    if options.summary:
        with open(options.summary, "w", encoding="utf-8") as handle:
            handle.write(text + "\n")
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())

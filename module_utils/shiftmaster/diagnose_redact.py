"""Take secrets and people's data out of evidence, on the host, before anything leaves it.

Three nets: values that are known (of the application's environment), what stands behind a name that says secret, and
shapes (an address with a password, a key block, a bearer's token). Literals of SQL and query strings name people.
"""

from __future__ import annotations

import re
import urllib.parse

HIDDEN = "***"
# A shorter value would be found in ordinary words.
_SHORTEST_SECRET = 6
_NAME = (
    r"(?:pass(?:word|wd|phrase|code)?|pwd|secret(?:[_-]?key)?|token|(?:api|access|private)[_-]?key|credential"
    r"|auth(?:orization)?|cookie|session(?:id|_key)|csrf\w*token|dsn|signature)s?"
)
SECRET_NAME = re.compile(r"(?i)(?:^|[^a-z])" + _NAME + r"(?:$|[^a-z])|(?:password|secret|token|[^a-z]key)$")
# A long part with digits of an address that people open (a password's reset, an invitation), not of a folder here.
_PATH = re.compile(
    r"(?<![\w./-])((?:https?://[^/\s\"']+)?)"
    r"(/(?!(?:backups?|boot|data|dev|etc|export|home|lib|mnt|nas|nfs|opt|proc|root|run|s?bin|srv|storage|sys|tmp|usr|var)/)[^\s\"'?<>]+)"
)
_PATH_TOKEN = re.compile(r"(?<=/)(?=[A-Za-z_-]*\d)[\w-]{20,}(?=/|$|[,;)])")


def _without_tokens(match) -> str:
    return match[1] + _PATH_TOKEN.sub(HIDDEN, match[2])


_SHAPES = (
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
        "[private key]",
    ),
    # user:password@ of an address; a password may itself hold an @.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/]*@"), r"\1:***@"),
    (re.compile(r"(?i)\b(bearer|basic|digest)\s+[a-z0-9+/_.=~-]{8,}"), r"\1 ***"),
    # Whatever the scheme is called, and every cookie of a line.
    (
        re.compile(r"(?i)((?<![a-z])authorization[\\\"']*\s*(?:=>|[=:])\s*[\\\"']*[a-z][\w-]*\s+)[^\s\"'\\,;]+"),
        r"\1***",
    ),
    (
        re.compile(
            r"(?i)((?<![a-z])cookie[\\\"']*\s*(?:=>|[=:])\s*[\\\"']*)[^\s\"'\\;]+(?:;\s*[^\s\"'\\;=]+=[^\s\"'\\;]*)*"
        ),
        r"\1***",
    ),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?"), HIDDEN),
    # PASSWORD 'x' of SQL, --password x of a command, "password": "x" of JSON, password=x of everything else.
    (re.compile(r"(?i)\b(password|encrypted password)(\s+)('(?:[^']|'')*'|\"[^\"]*\")"), r"\1\2***"),
    (re.compile(r"(?i)(?<!\S)(--?(?:[\w-]*-)?" + _NAME + r")([ =]+)(?!-)(\"[^\"]*\"|'[^']*'|\S+)"), r"\1\2***"),
    (
        re.compile(
            # What follows the name is set off: AuthenticationError: is no name of a secret.
            r"(?i)([\"']?\b[\w.-]*" + _NAME + r"(?:[_.-][\w.-]*)?\\*[\"']?\s*(?:=>|[=:])\s*)"
            # The second is JSON inside of JSON.
            r"(\"(?:[^\"\\]|\\.)*\"|\\+\"[^\"\\]*\\+\"|'(?:[^'\\]|\\.)*'|[^\s,;&)}\]]+)"
        ),
        r"\1***",
    ),
    (_PATH, _without_tokens),
    # What people type into forms that are sent by GET.
    (re.compile(r"(/[^\s?\"']*\?)[^\s\"']+"), r"\1***"),
    # Mail addresses; a unit of systemd looks like one.
    (
        re.compile(
            r"\b[\w.+-]+@(?!\S+\.(?:service|socket|timer|slice|scope|target|mount|path)\b)((?:[\w-]+\.)+[a-z]{2,})\b"
        ),
        r"***@\1",
    ),
)
# A statement may be cut in the middle of a literal. In a name and in a comment a quote begins none.
_SQL_LITERAL = re.compile(
    r"(?P<kept>\"(?:[^\"]|\"\")*\")|--[^\n]*|/\*.*?(?:\*/|\Z)|\b[eE]'(?:[^'\\]|''|\\.)*(?:'|\\?\Z)|'(?:[^']|'')*(?:'|\Z)"
    r"|\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)",
    re.S,
)


def secrets_of(environment: dict) -> list:
    """Return the values of an environment that must not be seen, the longest first, also as URLs write them."""
    found = set()
    for name, value in environment.items():
        parts = []
        if SECRET_NAME.search(name) and not value.startswith("/"):
            parts.append(value)
        if "://" in value:
            try:
                password = urllib.parse.urlsplit(value).password
            except ValueError:
                password = None
            parts += [password, urllib.parse.unquote(password)] if password else []
        for part in parts:
            found.update((part, urllib.parse.quote(part, safe=""), urllib.parse.quote(part)))
    return sorted((value for value in found if len(value) >= _SHORTEST_SECRET), key=len, reverse=True)


# What a terminal obeys: a program or a log line may clear the screen on which the report is read.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_KEY_BEGINS, _KEY_ENDS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    re.compile(r"-----END [A-Z ]*PRIVATE KEY-----"),
)


def redact(text: str, secrets=()) -> str:
    """Return a text without its secrets."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
        # Collectors cut what they read: most of a secret may be the end of what is left.
        for length in range(min(len(secret) - 1, len(text)), _SHORTEST_SECRET - 1, -1):
            if text.endswith(secret[:length]):
                text = text[:-length] + HIDDEN
                break
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text


def redact_sql(text: str) -> str:
    """Return a statement without its literals: they hold names of people, and of passwords where a role is made."""

    def instead(match):
        return match["kept"] or (" " if match[0].startswith(("--", "/*")) else "'?'")

    return " ".join(_SQL_LITERAL.sub(instead, text).split())


def _without_keys(values) -> list:
    """Return lines of a log without the key blocks among them, each line of which looks like nothing."""
    kept, inside = [], False
    for value in values:
        if isinstance(value, str):
            ends = _KEY_ENDS.search(value)
            if inside:
                inside = not ends
                value = value[ends.end() :] if ends else HIDDEN
            elif _KEY_BEGINS.search(value):
                inside = not ends
        kept.append(value)
    return kept


def redact_tree(value, secrets=(), limit: int = 2000):
    """Return data with every text in it redacted, and cut where it is too long for a report."""
    if isinstance(value, dict):
        return {
            # A key of data may come from outside too (a program's name).
            redact(str(key), secrets): HIDDEN
            if isinstance(inner, str) and inner and SECRET_NAME.search(str(key))
            else redact_tree(inner, secrets, limit)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact_tree(inner, secrets, limit) for inner in _without_keys(value)]
    if isinstance(value, str):
        # Cut behind the redaction: half a secret is one too.
        text = _CONTROL.sub("?", redact(value, secrets))
        return text if len(text) <= limit else text[:limit] + " …"
    return value

"""Take secrets and people's data out of evidence, on the host, before anything leaves it.

Three nets: values that are known (of the application's environment), the value after a name of a secret, and
shapes (an address with a password, a key block, a bearer's token). Literals of SQL and query strings name people.
"""

from __future__ import annotations

import re
import urllib.parse

from ..host.printable import printable

HIDDEN = "***"
# A shorter value would be found in ordinary words.
_SHORTEST_SECRET = 6
_NAME = (
    r"(?:pass(?:word|wd|phrase|code)?|pwd|secret(?:[_-]?key)?|token|(?:api|access|private)[_-]?key|credential"
    r"|(?<![a-z])pw(?![a-z])|auth(?:orization)?|cookie|session(?:id|_key)|csrf\w*token|dsn|signature)s?"
)
SECRET_NAME = re.compile(r"(?i)(?:^|[^a-z])" + _NAME + r"(?:$|[^a-z])|(?:password|secret|token|[^a-z]key)$")
# A long part with digits of an address that people open (a password's reset, an invitation), not of a directory here.
_PATH = re.compile(
    r"(?<![\w./-])((?:https?://[^/\s\"']+)?)"
    r"(/(?!(?:backups?|boot|data|dev|etc|export|home|lib|mnt|nas|nfs|opt|proc|root|run|s?bin|srv|storage|sys|tmp|usr|var)/)[^\s\"'?<>]+)"
)
_PATH_TOKEN = re.compile(r"(?<=/)(?=[A-Za-z_-]*\d)[\w-]{20,}(?=/|$|[,;)])")


def _without_tokens(match) -> str:
    return match[1] + _PATH_TOKEN.sub(HIDDEN, match[2])


# Text that is no word: with a digit, a sign, or a capital after a small letter.
_UNUSUAL = r"(?!<)(?=[^\s\"']*(?:[^\sA-Za-z\"'.,:;]|(?-i:[a-z][A-Z])))"
# A word, in quotes or not; and between a program and its option, in a command or in a list of its words.
_WORD = r"(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"']+)"
_OPTIONS = r"\b[^\n|;]{0,300}?[\s\"'](?:%s)[\s\"',=]{0,5}"
# A word alone after "password for admin:" that describes a password and is none.
_STATES = (
    r"(?:(?:not|was|is|has|were|been|must|may|cannot|un\w+|in\w+|mis\w+|\w+ed|no|none|null|true|false|yes|ok|wrong|empty|error"
    r"|reset|set|expires|failure|denied|too|sent)(?![\w-]))"
)
# No part repeats without an end what begins at every letter: a log line of a megabyte is read once.
_SHAPES = tuple(
    (re.compile(pattern), instead)
    for pattern, instead in (
        (
            r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
            "[private key]",
        ),
        # What programs take as an option of one letter.
        (r"(\bcurl%s[^\s:\"',]+:)[^\s\"']+" % (_OPTIONS % "-u|--user|-U|--proxy-user"), r"\1***"),
        (r"(\b(?:redis|valkey)-cli%s)[^\s\"',]+" % (_OPTIONS % "-a"), r"\1***"),
        (
            r"(\b(?:mysql(?:dump|admin|import|check)?|mariadb(?:-dump|-admin)?|sshpass)\b[^\n|;]{0,300}?[\s\"']-p)(\"[^\"\n]+\"|'[^'\n]+'|[^\s\"',]+)",
            r"\1***",
        ),
        (r"(\bsshpass%s)[^\s\"',]+" % (_OPTIONS % "-p"), r"\1***"),
        # Redis' own command. "AUTH PLAIN LOGIN" and "AUTH failed" are words.
        (
            r"(\bAUTH\\*[\"']?\s+(?:%s\s+)?)\\*(?:\"[^\"\n]+\"|'[^'\n]+'|%s[^\s\"',;)]{6,})" % (_WORD, _UNUSUAL),
            r"\1***",
        ),
        # As programs prompt for it: "Password for admin: x"; and in Japanese.
        (
            r"(?i)(\bpass(?:word|phrase|code)\s+(?:for|of)\s[^\n:=]{1,60}[:=][ \t]*)(?!%s)"
            r"(?:[^\s\"',;]+(?=[ \t]*(?:$|[\"'\n]))|%s[^\s\"',;]{6,})" % (_STATES, _UNUSUAL),
            r"\1***",
        ),
        (r"((?:パスワード|パスフレーズ|暗証番号)[^\S\n]*[:：=＝][^\S\n]*)[!-~]+", r"\1***"),
        (r"((?:トークン|シークレット|秘密鍵|認証キー)[^\S\n]*[:：=＝][^\S\n]*)[!-~]{6,}", r"\1***"),
        # <password>x</password>
        (
            r"(?i)(<(?:[\w.-]{0,40}[:_.-])?" + _NAME + r"(?:[_.-][\w.-]{0,40})?(?:\s[^<>]{0,200})?>)[^<]+(?=</)",
            r"\1***",
        ),
        # user:password@ of an address; a password may itself hold an @.
        (r"(?i)\b([a-z][a-z0-9+.-]{0,30}://[^\s:/@]{0,200}):[^\s/]{0,1000}@", r"\1:***@"),
        # The same without a scheme; 127.0.0.1:6379@16379 is a node, redis:7@sha256 an image, web@blue.service a unit.
        (
            r"(?<![\w.+-])(?=[\w.+-]{0,63}[A-Za-z])([\w.+-]{1,64}):(?!\d{1,10}@|//)[^\s/\"'<>,;]{4,100}"
            r"@(?!\S{1,100}\.(?:service|socket|timer|slice|scope|target|mount|path)\b|sha\d+:)(?=[A-Za-z0-9\[])",
            r"\1:***@",
        ),
        (r"(?i)\b(bearer|basic|digest)\s+[a-z0-9+/_.=~-]{8,}", r"\1 ***"),
        # Whatever the scheme is called, and every cookie of a line.
        (
            r"(?i)((?<![a-z])authorization[\\\"']*\s*(?:=>|[=:])\s*[\\\"']*[a-z][\w-]*\s+)[^\s\"'\\,;]+",
            r"\1***",
        ),
        (
            r"(?i)((?<![a-z])cookie[\\\"']*\s*(?:=>|[=:])\s*[\\\"']*)[^\s\"'\\;]+(?:;\s*[^\s\"'\\;=]+=[^\s\"'\\;]*)*",
            r"\1***",
        ),
        (r"\beyJ[A-Za-z0-9_-]{6,1000}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?", HIDDEN),
        # PASSWORD 'x' of SQL, --password x of a command, "password": "x" of JSON, password=x of everything else.
        (r"(?i)\b(password|encrypted password)(\s+)('(?:[^']|'')*'|\"[^\"]*\")", r"\1\2***"),
        (r"(?i)(?<!\S)(--?(?:[\w-]*-)?" + _NAME + r")([ =]+)(?!-)(\"[^\"]*\"|'[^']*'|\S+)", r"\1\2***"),
        (
            # What follows the name is set off: AuthenticationError: is no name of a secret.
            r"(?i)(" + _NAME + r"(?:[_.-][\w.-]{0,60})?\\*[\"']?\s*(?:=>|[=:])\s*)"
            # The second is JSON inside of JSON. A comma ends a value where another name or a blank follows it.
            r"(\"(?:[^\"\\]|\\.)*\"|\\+\"[^\"\\]*\\+\"|'(?:[^'\\]|\\.)*'"
            r"|[^\s,;&)}\]](?:[^\s,;&)}\]]|,(?=[^\s\"'{\[(\\])(?![\w.-]{1,40}[=:]))*)",
            r"\1***",
        ),
        (_PATH, _without_tokens),
        # What people type into forms that are sent by GET.
        (r"(/[^\s?/\"']*\?)[^\s\"']+", r"\1***"),
        # Mail addresses; a unit of systemd looks like one.
        (
            r"\b[\w.+-]{1,64}@(?!\S{1,100}\.(?:service|socket|timer|slice|scope|target|mount|path)\b)"
            r"((?:[\w-]{1,63}\.){1,10}[a-z]{2,})\b",
            r"***@\1",
        ),
    )
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


_KEY_BEGINS, _KEY_ENDS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"),
    re.compile(r"-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"),
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
        # Cut after the redaction: half a secret is one too.
        text = printable(redact(value, secrets))
        return text if len(text) <= limit else text[:limit] + " …"
    return value

"""Runs the filters of a Logstash configuration on events: a model of Logstash, with the real engine of its patterns.

Certain: the configuration is the one that role logstash renders, read here by the grammar that Logstash
documents; every regular expression runs in Oniguruma (Logstash has Joni, its translation to Java), with the patterns
file that the role installs. What it is not: Logstash. Only the filters and options that the role uses are known, as
their documentation describes them, and everything else is an error. Results are labelled so.
"""

from __future__ import annotations

import copy
import datetime
import functools
import hashlib
import json
import re
import uuid
import zoneinfo
from pathlib import Path

import onigurumacffi
from masked import gsub

# --- the configuration -----------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<skip>(?:\s+|\#[^\n]*\n?)+)|(?P<string>"(?:\\"|[^"])*"|'(?:\\'|[^'])*')|(?P<regexp>/(?:\\/|[^/\n])*/)"""
    r"""|(?P<field>(?:\[[^\[\],"']+\])+)|(?P<number>-?\d+(?:\.\d+)?)|(?P<word>[A-Za-z_][A-Za-z0-9_-]*)"""
    r"""|(?P<mark>=>|==|!=|=~|!~|<=|>=|[{}\[\](),!<>])"""
)


class Refused(Exception):
    """The configuration is not what this model understands."""


class _Reader:
    def __init__(self, text: str):
        self.text, self.place = text, 0

    def peek(self):
        while True:
            match = _TOKEN.match(self.text, self.place)
            if match is None:
                if self.place >= len(self.text):
                    return None, None
                raise Refused("line %d" % (self.text.count("\n", 0, self.place) + 1))
            if match.lastgroup != "skip":
                return match.lastgroup, match.group()
            self.place = match.end()

    def next(self, wanted=None):
        kind, text = self.peek()
        if kind is None or (wanted is not None and text != wanted):
            raise Refused("line %d: %s, not %s" % (self.text.count("\n", 0, self.place) + 1, wanted, text))
        self.place = _TOKEN.match(self.text, self.place).end()
        return kind, text

    def take(self, *texts) -> bool:
        if self.peek()[1] in texts and self.peek()[0] in ("mark", "word"):
            self.next()
            return True
        return False


def read(text: str) -> dict:
    """Return {"input": [...], "filter": [...], "output": [...]}; what is in them: (name, [(option, value)]) and
    ("if", [(condition or None, [...])])."""
    reader, found = _Reader(text), {}
    while reader.peek()[0] is not None:
        section = reader.next()[1]
        if section not in ("input", "filter", "output"):
            raise Refused(section)
        found.setdefault(section, []).extend(_block(reader))
    return found


def _block(reader) -> list:
    reader.next("{")
    found = []
    while not reader.take("}"):
        word = reader.next()[1]
        if word == "if":
            branches = [(_condition(reader), _block(reader))]
            while reader.take("else"):
                if reader.take("if"):
                    branches.append((_condition(reader), _block(reader)))
                else:
                    branches.append((None, _block(reader)))
                    break
            found.append(("if", branches))
        else:
            reader.next("{")
            found.append((word, _options(reader)))
    return found


def _options(reader) -> list:
    options = []
    while not reader.take("}"):
        name = reader.next()[1]
        reader.next("=>")
        options.append((name, _value(reader)))
    return options


def _value(reader):
    kind, text = reader.peek()
    if kind == "field":
        # [a] is also an array of one word; the role quotes what is in its arrays.
        raise Refused("an array of words: %s" % text)
    reader.next()
    if kind == "string":
        return text[1:-1]
    if kind == "number":
        return float(text) if "." in text else int(text)
    if text in ("true", "false"):
        return text == "true"
    if kind == "word":
        # A plugin in the place of a value: a codec with its options.
        return {text: dict(_options(reader))} if reader.take("{") else text
    if text == "[":
        found = []
        while not reader.take("]"):
            found.append(_value(reader))
            reader.take(",")
        return found
    if text == "{":
        found = []
        while not reader.take("}"):
            name = _value(reader)
            reader.next("=>")
            found.append((name, _value(reader)))
        return dict(found)
    raise Refused(text)


def _condition(reader):
    found = _comparison(reader)
    while reader.peek()[1] in ("and", "or"):
        operator = reader.next()[1]
        found = (operator, found, _comparison(reader))
    return found


def _comparison(reader):
    if reader.take("!"):
        return ("not", _comparison(reader))
    if reader.take("("):
        found = _condition(reader)
        reader.next(")")
        return found
    left = _operand(reader)
    kind, text = reader.peek()
    if text in ("==", "!=", "=~", "!~", "in"):
        reader.next()
        return (text, left, _operand(reader))
    if text == "not":
        reader.next()
        reader.next("in")
        return ("not", ("in", left, _operand(reader)))
    return ("is", left)


def _operand(reader):
    kind, text = reader.next()
    if kind == "string":
        return ("value", text[1:-1])
    if kind == "regexp":
        return ("regexp", text[1:-1])
    if kind == "field":
        return ("field", text)
    if text == "[":
        found = []
        while not reader.take("]"):
            found.append(_operand(reader)[1])
            reader.take(",")
        return ("value", found)
    raise Refused(text)


# --- events ----------------------------------------------------------------------------------------------------------


@functools.cache
def _keys(name: str) -> list:
    return re.findall(r"\[([^\[\]]+)\]", name) or [name]


class Event(dict):
    def get_field(self, name: str):
        found = self
        for key in _keys(name):
            if not isinstance(found, dict) or key not in found:
                return None
            found = found[key]
        return found

    def has(self, name: str) -> bool:
        found = self
        for key in _keys(name):
            if not isinstance(found, dict) or key not in found:
                return False
            found = found[key]
        return True

    def set_field(self, name: str, value) -> None:
        found = self
        *first, last = _keys(name)
        for key in first:
            if not isinstance(found.get(key), dict):
                found[key] = {}
            found = found[key]
        found[last] = value

    def remove(self, name: str):
        found = self
        *first, last = _keys(name)
        for key in first:
            found = found.get(key) if isinstance(found, dict) else None
        return found.pop(last, None) if isinstance(found, dict) else None

    def tag(self, *names) -> None:
        tags = self.setdefault("tags", [])
        tags += [name for name in names if name not in tags]

    def text(self, template: str) -> str:
        """Return a text with its %{fields}."""

        def value(match):
            found = self.get_field(match[1])
            if found is None:
                return match[0]
            return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, separators=(",", ":"))

        return re.sub(r"%\{([^}]+)\}", value, template)


# --- filters ---------------------------------------------------------------------------------------------------------

_FORMATS = {
    "yyyy-MM-dd HH:mm:ss,SSS": "%Y-%m-%d %H:%M:%S,%f",
    "yyyy-MM-dd HH:mm:ss.SSS": "%Y-%m-%d %H:%M:%S.%f",
    "yyyy-MM-dd HH:mm:ss Z": "%Y-%m-%d %H:%M:%S %z",
    "yyyy-MM-dd HH:mm:ss": "%Y-%m-%d %H:%M:%S",
    "yyyy/MM/dd HH:mm:ss": "%Y/%m/%d %H:%M:%S",
    "dd MMM yyyy HH:mm:ss.SSS": "%d %b %Y %H:%M:%S.%f",
}
_REFERENCE = re.compile(r"%\{([A-Za-z0-9_]+)(?::([@\[\]A-Za-z0-9_.-]+?))?(?::(int|float))?\}")


def patterns(path: Path) -> dict:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return dict(line.split(" ", 1) for line in lines)


class Pipeline:
    def __init__(self, text: str, patterns_file: Path):
        self.sections = read(text)
        self.patterns = patterns(patterns_file)
        self._groks = {}

    def run(self, event: dict) -> Event:
        event = Event(copy.deepcopy(event))
        # The default codec keeps the line as it came, since pipeline.ecs_compatibility is v8.
        codec = dict(self.sections["input"][0][1]).get("codec", {"plain": {}})["plain"]
        if codec.get("ecs_compatibility") != "disabled" and not event.has("[event][original]"):
            event.set_field("[event][original]", event.get_field("message"))
        self._block(self.sections["filter"], event)
        return event

    def index(self, event: Event) -> str:
        (_name, options) = self.sections["output"][0]
        return event.text(dict(options)["index"])

    def number(self, event: Event) -> str:
        """Return the document's id; a field that is not there leaves its name in it."""
        (_name, options) = self.sections["output"][0]
        return event.text(dict(options)["document_id"])

    def _block(self, block, event) -> None:
        for name, body in block:
            if name == "if":
                for condition, inner in body:
                    if condition is None or self._true(condition, event):
                        self._block(inner, event)
                        break
            else:
                getattr(self, "_" + name)(event, dict(body))

    def _true(self, condition, event) -> bool:
        kind = condition[0]
        if kind == "and":
            return self._true(condition[1], event) and self._true(condition[2], event)
        if kind == "or":
            return self._true(condition[1], event) or self._true(condition[2], event)
        if kind == "not":
            return not self._true(condition[1], event)
        left = self._of(condition[1], event)
        if kind == "is":
            return left is not None and left is not False
        right = self._of(condition[2], event)
        if kind == "==":
            return left == right
        if kind == "!=":
            return left != right
        if kind == "in":
            return right is not None and left in right
        if kind in ("=~", "!~"):
            found = isinstance(left, str) and _regexp(right).search(left) is not None
            return found == (kind == "=~")
        raise Refused(kind)

    def _of(self, operand, event):
        return event.get_field(operand[1]) if operand[0] == "field" else operand[1]

    # One method for each filter.

    def _mutate(self, event, options) -> None:
        known = ("rename", "replace", "copy", "gsub", "uppercase", "add_field", "remove_field", "add_tag", "convert")
        _only(options, known)
        # The order of the plugin, not of the configuration.
        for old, new in options.get("rename", {}).items():
            if event.has(old):
                event.set_field(new, event.remove(old))
        for name, value in options.get("replace", {}).items():
            event.set_field(name, event.text(value))
        changes = options.get("gsub", [])
        for name, pattern, replacement in zip(changes[::3], changes[1::3], changes[2::3]):
            value = event.get_field(name)
            if isinstance(value, str):
                event.set_field(name, gsub(pattern, replacement, value))
            elif isinstance(value, list):
                event.set_field(name, [gsub(pattern, replacement, v) if isinstance(v, str) else v for v in value])
        for name in options.get("uppercase", []):
            value = event.get_field(name)
            if isinstance(value, str):
                event.set_field(name, value.upper())
        for old, new in options.get("copy", {}).items():
            if event.has(old):
                event.set_field(new, copy.deepcopy(event.get_field(old)))
        self._common(event, options)

    def _common(self, event, options) -> None:
        for name, value in options.get("add_field", {}).items():
            event.set_field(name, event.text(value))
        for name in options.get("remove_field", []):
            event.remove(name)
        event.tag(*options.get("add_tag", [])) if options.get("add_tag") else None

    def _json(self, event, options) -> None:
        _only(options, ("source", "target", "tag_on_failure"))
        try:
            event.set_field(
                options["target"], json.loads(event.get_field(options["source"]), parse_constant=_no_number)
            )
        except ValueError:
            event.tag(*options["tag_on_failure"])

    def _fingerprint(self, event, options) -> None:
        if options.get("method") == "UUID":
            _only(options, ("method", "target"))
            event.set_field(options["target"], str(uuid.uuid4()))
            return
        _only(options, ("source", "concatenate_sources", "method", "target"))
        assert options["concatenate_sources"] is True and options["method"] == "SHA256"
        text = "".join("|%s|%s" % (name, event.get_field(name)) for name in options["source"]) + "|"
        event.set_field(options["target"], hashlib.sha256(text.encode()).hexdigest())

    def _date(self, event, options) -> None:
        _only(options, ("match", "timezone", "locale", "tag_on_failure"))
        name, *formats = options["match"]
        value = event.get_field(name)
        if not isinstance(value, str):
            return
        for form in formats:
            found = _timestamp(value, form, options["timezone"])
            if found is not None:
                event["@timestamp"] = found
                return
        event.tag(*options["tag_on_failure"])

    def _grok(self, event, options) -> None:
        _only(options, ("match", "patterns_dir", "overwrite", "tag_on_failure"))
        ((source, given),) = options["match"].items()
        value = event.get_field(source)
        for pattern in [given] if isinstance(given, str) else given:
            regexp, names = self._compiled(pattern)
            match = regexp.search(value) if isinstance(value, str) else None
            if match is None:
                continue
            for number, (field, kind) in enumerate(names, 1):
                text = match[number] if match.end(number) >= 0 and field else ""
                # Empty values are not kept.
                if not text:
                    continue
                found = int(text) if kind == "int" else float(text) if kind == "float" else text
                if field in options.get("overwrite", []) or not event.has(field):
                    event.set_field(field, found)
                else:
                    had = event.get_field(field)
                    event.set_field(field, [*(had if isinstance(had, list) else [had]), found])
            return
        event.tag(*options.get("tag_on_failure", ["_grokparsefailure"]))

    def _compiled(self, pattern: str):
        if pattern not in self._groks:
            names = []

            def expand(match):
                name, field, kind = match.groups()
                if name not in self.patterns:
                    raise Refused("there is no pattern %s" % name)
                if field:
                    # A group for each, by number: Oniguruma's names hold no brackets.
                    names.append((field, kind))
                    return "(?<g%d>%s)" % (len(names), _REFERENCE.sub(expand, self.patterns[name]))
                return "(?:%s)" % _REFERENCE.sub(expand, self.patterns[name])

            self._groks[pattern] = (onigurumacffi.compile(_REFERENCE.sub(expand, pattern)), names)
        return self._groks[pattern]


def _regexp(text: str, known={}):  # noqa: B006
    # In Logstash a slash in a regular expression has a backslash.
    if text not in known:
        known[text] = onigurumacffi.compile(text.replace("\\/", "/"))
    return known[text]


def _only(options, known) -> None:
    unknown = set(options) - set(known)
    if unknown:
        raise Refused("options %s" % ", ".join(sorted(unknown)))


def _no_number(name: str):
    raise ValueError("%s is no JSON" % name)


def _timestamp(text: str, form: str, zone: str):
    try:
        if form == "ISO8601":
            if not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([.,]\d{1,9})?(Z|[+-]\d\d:?\d\d)?\Z", text):
                return None
            found = datetime.datetime.fromisoformat(text)
        else:
            found = datetime.datetime.strptime(text, _FORMATS[form])
    except ValueError:
        return None
    if found.tzinfo is None:
        found = found.replace(tzinfo=zoneinfo.ZoneInfo(zone))
    found = found.astimezone(datetime.timezone.utc)
    return found.strftime("%Y-%m-%dT%H:%M:%S.") + "%03dZ" % (found.microsecond // 1000)

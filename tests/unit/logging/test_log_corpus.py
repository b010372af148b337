"""Lines of logs go through Filebeat's joining and Logstash's filters, as the roles configure them.

Patterns run in the real engine (Oniguruma); the filters and the joining are models of this repository (see
tests/logstash_model.py and tests/filebeat_model.py). The lines are in tests/logging/corpus/.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import filebeat_model
import pytest
import yaml
from ansible.template import trust_as_template
from logstash_model import Pipeline, Refused, patterns, read
from logstash_pipeline_parser import Pipeline as Oracle
from masked import in_oniguruma, in_python, seeds
from rendered import ROOT, masks, render, templar

CORPUS = ROOT / "tests" / "logging" / "corpus"
FILES = sorted(path.name for path in CORPUS.glob("*.yml") if path.name != "innocent.yml")
MASKS = masks()
TEXT = render("logstash", "pipeline.conf.j2", logstash_masks=MASKS)
PATTERNS = ROOT / "roles/logstash/files/patterns"
PIPELINE = Pipeline(TEXT, PATTERNS)


def load(name):
    return yaml.safe_load((CORPUS / name).read_text(encoding="utf-8"))


def inputs() -> dict:
    """Return {id: options} of all inputs, as role filebeat writes them from the group variables."""
    group_variables = load(ROOT / "group_vars/all/logging.yml")
    files = [file for kind in group_variables["logging_files"].values() for file in kind]
    for file in files:
        if file.get("begins") == "{{ logging_begins }}":
            file["begins"] = group_variables["logging_begins"]
    made = templar("filebeat", filebeat_files=files).template(trust_as_template("{{ __filebeat_inputs }}"))
    return {found["id"]: found for found in made}


INPUTS = inputs()


def flat(event, prefix=""):
    found = {}
    for name, value in event.items():
        found.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value})
    return found


def pipeline(source, text, **more):
    dataset = INPUTS[source]["fields"]["event.dataset"]
    return PIPELINE.run({"message": text, "event": {"dataset": dataset}, "@timestamp": "read", **more})


def fields(source, text):
    """Return what Elasticsearch would get, but for what is the same in all events of a source."""
    event = pipeline(source, text)
    dataset = event["event"]["dataset"]
    assert event.pop("data_stream") == {"type": "logs", "dataset": dataset, "namespace": "production"}
    assert PIPELINE.index(event) == f"logs-{dataset}-production"
    event.pop("@metadata", None)
    found = flat(event)
    assert found.pop("event.dataset") == INPUTS[source]["fields"]["event.dataset"]
    return found


# --- field by field --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_field_of_every_line(name):
    corpus = load(name)
    for case in corpus["cases"]:
        made = filebeat_model.events(INPUTS[corpus["input"]], case["lines"].encode() + b"\n")
        assert [fields(corpus["input"], text) for text in made] == case["gives"], case["lines"]


@pytest.mark.parametrize("name", FILES)
def test_consecutive_lines_are_neither_lost_nor_doubled(name):
    corpus = load(name)
    cases = [case for case in corpus["cases"] if not case.get("alone")]
    data = "".join(case["lines"] + "\n" for case in cases).encode()
    made = filebeat_model.events(INPUTS[corpus["input"]], data)
    assert [fields(corpus["input"], text) for text in made] == [event for case in cases for event in case["gives"]]
    # And with Windows' ends of lines.
    assert filebeat_model.events(INPUTS[corpus["input"]], data.replace(b"\n", b"\r\n")) == made


@pytest.mark.parametrize("name", FILES)
def test_no_field_contains_an_unresolved_reference(name):
    """The text that Logstash writes for a missing field."""
    corpus = load(name)
    for case in corpus["cases"]:
        for text in filebeat_model.events(INPUTS[corpus["input"]], case["lines"].encode() + b"\n"):
            left = re.findall(r"%\{[^}]*\}", str(list(fields(corpus["input"], text).values())))
            assert not [name for name in left if name not in text], text


def test_each_event_that_an_operation_records_is_in_the_corpus():
    output = set()
    for directory, pattern in (
        ("library", "*.py"),
        ("module_utils", "*.py"),
        ("roles", "*.yml"),
        ("playbooks", "*.yml"),
    ):
        for path in (ROOT / directory).rglob(pattern):
            text = path.read_text(encoding="utf-8")
            output |= set(re.findall(r'\b_?audit\(\s*(?:self\.layout,\s*)?"(\w+)"', text))
            if "state: audited" in text or "release_audit_event" in text:
                output |= set(re.findall(r"(?m)^ +(?:release_audit_)?event: (\w+)$", text))
    assert len(output) >= 15 and "restored" in output
    lines = [json.loads(case["lines"]) for case in load("audit.yml")["cases"]]
    assert output == {line["event"] for line in lines if isinstance(line["event"], str)}
    # Each is read as one of the operations' own, without fields of other lines.
    for line in lines:
        if isinstance(line["event"], str):
            made = fields("shiftmaster-operations", json.dumps(line))
            assert "tags" not in made and made["event.action"].endswith(line["event"]), line
    # Such a line elsewhere is JSON of another program.
    assert "json_of_others" in fields(APP, json.dumps(lines[-1]))["tags"]


def test_there_are_enough_lines():
    assert sum(case["lines"].count("\n") + 1 for name in FILES for case in load(name)["cases"]) >= 250
    assert sum(len(case["gives"]) for name in FILES for case in load(name)["cases"]) >= 150


def test_errors_and_only_errors_are_tagged_alert():
    for name in FILES:
        for case in load(name)["cases"]:
            for event in case["gives"]:
                grave = event.get("log.level") in (
                    "ERROR", "CRITICAL", "FATAL", "PANIC", "CRIT", "ALERT", "EMERG",
                )  # fmt: skip
                assert grave == ("alert" in event.get("tags", []))


# --- streams that are not so tidy ------------------------------------------------------------------------------------

APP = "shiftmaster-app"
LINE = "2026-01-20 10:00:{:02d},000 [INFO] a: {}"


def test_a_partial_line_waits_for_the_rest_in_any_pieces():
    data = "".join(case["lines"] + "\n" for case in load("tracebacks-3.13.yml")["cases"]).encode()
    complete = filebeat_model.events(INPUTS[APP], data)
    dice = random.Random(7)
    for _ in range(20):
        reader, made, place = filebeat_model.Input(INPUTS[APP]), [], 0
        while place < len(data):
            size = dice.randrange(1, 400)
            made += reader.feed(data[place : place + size])
            place += size
        assert made + reader.timeout() == complete


def test_a_rotation_between_two_halves_of_a_line():
    """The writer ends its line in the old file, which is still read; the next line is in the new one."""
    old, new = filebeat_model.Input(INPUTS[APP]), filebeat_model.Input(INPUTS[APP])
    made = old.feed(LINE.format(1, "first").encode() + b"\n" + LINE.format(2, "sec").encode())
    made += new.feed(LINE.format(3, "third").encode() + b"\n")
    made += old.feed(b"ond\n") + old.timeout() + new.timeout()
    assert sorted(fields(APP, text)["message"] for text in made) == ["first", "second", "third"]


def test_interleaved_tracebacks_lose_no_line():
    """Two processes that write plain tracebacks tear them apart: they cannot be joined, and every line is kept."""
    one, two = (case["lines"].split("\n") for case in load("tracebacks-3.13.yml")["cases"][:2])
    dice, mixed, rest = random.Random(3), [], [list(one), list(two)]
    while any(rest):
        queue = dice.choice([found for found in rest if found])
        mixed.append(queue.pop(0))
    made = filebeat_model.events(INPUTS[APP], ("\n".join(mixed) + "\n").encode())
    # Two events begin, so there are two, of which one has lines of the other.
    assert len(made) == 2
    assert sorted("\n".join(made).split("\n")) == sorted(one + two)


def test_json_of_several_processes_is_never_torn():
    """One write is one line: the case that the package makes of it (shiftmaster_monitoring/test_monitoring_logs.py)."""
    lines = [case["lines"] for case in load("json.yml")["cases"] if not case.get("alone")][:8] * 5
    random.Random(5).shuffle(lines)
    made = filebeat_model.events(INPUTS[APP], "".join(line + "\n" for line in lines).encode())
    assert made == lines


def test_bytes_that_are_no_text():
    garbage = bytes(random.Random(1).randrange(256) for _ in range(4000)).replace(b"\n", b"")
    data = LINE.format(1, "before").encode() + b"\n" + garbage + b"\n" + LINE.format(2, "behind").encode() + b"\n"
    first, second = (fields(APP, text) for text in filebeat_model.events(INPUTS[APP], data))
    assert first["message"].startswith("before\n") and len(first["message"]) > 2000
    assert second["message"] == "behind" and "tags" not in first
    (alone,) = (fields(APP, text) for text in filebeat_model.events(INPUTS[APP], garbage + b"\n"))
    assert alone["tags"] == ["_grokparsefailure"] and alone["@timestamp"] == "read"
    shift_jis = LINE.format(3, "夜勤").encode("shift_jis") + b"\n"
    (other,) = (fields(APP, text) for text in filebeat_model.events(INPUTS[APP], shift_jis))
    assert "�" in other["message"] and other["log.level"] == "INFO"


def test_very_long_lines():
    for size in (10_000, 200_000):
        event = fields(APP, LINE.format(1, "x" * size))
        assert event["message"] == "x" * size and event["log.level"] == "INFO"
    event = fields(APP, LINE.format(1, "x" * 200_000)[5:])  # Its beginning is lost.
    assert event["tags"] == ["_grokparsefailure"] and len(event["message"]) > 200_000
    trace = "\n".join(f'  File "a.py", line {number}, in f' for number in range(4000))
    event = fields(APP, LINE.format(1, "deep") + "\nTraceback (most recent call last):\n" + trace + "\nKeyError: 1")
    assert event["error.type"] == "KeyError" and event["message"] == "deep"


def test_the_same_event_twice_has_the_same_number():
    more = {"log": {"offset": 4711, "file": {"path": "/a.log", "fingerprint": "f"}}, "agent": {"id": "x"}}
    one = pipeline(APP, LINE.format(1, "x"), **more)["@metadata"]["id"]
    assert one == pipeline(APP, LINE.format(1, "x"), **more)["@metadata"]["id"] and len(one) == 64
    more["log"]["offset"] = 4712
    assert pipeline(APP, LINE.format(1, "x"), **more)["@metadata"]["id"] != one


@pytest.mark.parametrize("more", [{}, {"log": {"offset": 0, "file": {"path": "/a.log"}}}])
def test_events_without_a_position_in_a_file_have_their_own_number(more):
    """The journal's lines; and a file that is too short to be known, of which another one may have the name."""
    numbers = {PIPELINE.number(pipeline(APP, LINE.format(1, "x"), **more)) for _ in range(5)}
    assert len(numbers) == 5 and not [number for number in numbers if "%" in number]


def test_the_journal_adds_one_text_and_nothing_that_bypasses_the_masks():
    """As Filebeat's input journald writes its events."""
    text = "patient_id=4711999"
    event = {
        "message": text,
        "event": {"dataset": "shiftmaster.journal", "code": "a"},
        "process": {"pid": 7, "name": "sshd", "command_line": "sshd " + text, "args": ["sshd", text], "args_count": 2},
        "journald": {"custom": {"patient": text}, "process": {"command_line": text}, "host": {"boot_id": "b"}},
        "systemd": {"unit": "ssh.service"},
        "syslog": {"identifier": "sshd", "priority": 6},
    }
    made = PIPELINE.run({**event, "@timestamp": "read"})
    assert "4711999" not in json.dumps(made) and "journald" not in made
    assert made["process"] == {"pid": 7, "name": "sshd", "command_line": "sshd patient_id=[patient]"}
    assert made["message"] == "patient_id=[patient]" and made["systemd"] == {"unit": "ssh.service"}


# --- what may never leave --------------------------------------------------------------------------------------------


def seeded():
    """Yield (mask, line with its seeds, its values) as each source would write it."""
    for mask in MASKS:
        for line in mask["must"]:
            text, values = seeds(line)
            yield mask["name"], text, values


def as_json(text, **more):
    event = {
        "@timestamp": "2026-01-20T01:00:00.123Z",
        "log": {"level": "INFO"},
        "message": text,
        "ecs": {"version": "8"},
    }
    return json.dumps({**event, **more}, ensure_ascii=False)


FORMS = {
    "plain": lambda text: LINE.format(1, text),
    "second line": lambda text: LINE.format(1, "an event") + "\n" + text,
    "celery": lambda text: "[2026-01-20 10:00:00,123: INFO/MainProcess] " + text,
    "unknown": lambda text: "? " + text,
    "json": as_json,
    "json, in a trace": lambda text: as_json(
        "x", error={"type": "E", "message": text, "stack_trace": "Traceback:\n" + text + "\nE"}
    ),
    "json, in an object": lambda text: as_json({"deep": [text]}),
    "json, in the path": lambda text: as_json("x", url={"path": "/a/" + text}),
    "json, in extra": lambda text: as_json("x", labels={"extra": "a=b " + text}),
    "json of others": lambda text: '{"level": "info", "other": "x\\n' + text.replace("\\", "\\\\").replace('"', '\\"')
    .replace("\n", "\\n") + '"}',
    "json of others, in fields": lambda text: json.dumps(
        {
            "message": "x", "level": text, "logger": {"deep": text}, "request_id": text, "route": text,
            "method": [text],
            "labels": {"task": text, "route": text, "slot": text}, "error": {"type": text}, "user": {"hash": text},
            "process": {"thread": {"name": text}}, "log": {"origin": {"file": {"name": text}}, "logger": [text]},
            "event": {"action": text}, "remote_addr": text, "http": {"request": {"id": text}}, "日本": "",
        }
    ),
    "json of others, escaped": lambda text: json.dumps({"message": text, "other": text + "日本"}),
    "broken json": lambda text: '{"message": "' + text.replace("\n", "\\n"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_no_seeded_value_passes_the_second_mask(form):
    left = []
    for name, text, values in seeded():
        complete = "\n".join(str(value) for value in flat(pipeline(APP, FORMS[form](text))).items())
        complete = re.sub(r"\('@metadata\.[^\n]*", "", complete)
        left += [(name, value, complete) for value in values if value in complete.replace("\\\\", "\\")]
    assert left == []


ACCESS = {
    "time": "2026-01-20T10:00:00+09:00", "request_id": "0" * 32, "remote_addr": "203.0.113.9", "method": "GET",
    "path": "/", "status": 200, "bytes": 10, "request_time": 0.1, "upstream_response_time": "0.1", "host": "a",
    "referer": "", "user_agent": "x",
}  # fmt: skip


def operation(**more):
    return json.dumps({"event": "recovered", "run_id": "r", "time": "2026-01-20T01:00:00Z", **more}, ensure_ascii=False)


# Lines of each other input with values that an external client has filled in.
INPUT_FORMS = {
    "shiftmaster-audit": [as_json],
    "shiftmaster-canary": [as_json],
    "shiftmaster-operations": [
        lambda text: operation(what=text), lambda text: operation(reason=text),
        lambda text: operation(kind="deploy", target="a", reason=text), lambda text: operation(reason=[text]),
        lambda text: operation(anything=text),
    ],
    "shiftmaster-nginx": [
        *(lambda text, name=name: json.dumps({**ACCESS, name: text}, ensure_ascii=False)
          for name in ("path", "host", "referer", "user_agent")),
    ],
    "shiftmaster-nginx-error": [
        lambda text: "2026/01/20 10:00:00 [error] 12#34: *5 " + text,
        lambda text: "2026/01/20 10:00:00 [error] 12#34: *5 failed, client: 203.0.113.9, request: \"GET /%s\"" % text,
    ],
    "shiftmaster-postgresql": [
        lambda text: "2026-01-20 10:00:00.123 JST [123] [user=a,db=b,app=[unknown],client=::1] ERROR:  " + text,
        lambda text: "2026-01-20 10:00:00.123 JST [123] [user=a,db=b,app=c,client=[local]] STATEMENT:  /* request_id="
        + "0" * 32 + " */ SELECT " + text,
    ],
    "shiftmaster-redis": [lambda text: "7:M 20 Jan 2026 10:00:00.123 # " + text],
}  # fmt: skip


def left_of(made, text, values):
    made.pop("@metadata", None)
    complete = "\n".join(str(value) for value in flat(made).items()).replace("\\\\", "\\")
    return [(value, complete) for value in values if value in complete]


def test_every_input_has_its_forms():
    assert set(INPUT_FORMS) | {APP} == set(INPUTS)


def test_no_event_contains_the_original_line():
    """Neither the codec's copy of the line nor one that a sender has added: the masks know no names of people."""
    for original in ({}, {"original": "田中太郎 様"}):
        event = PIPELINE.run({"message": "田中太郎 様", "event": {"dataset": "shiftmaster.app", **original}})
        assert "original" not in event["event"], event


@pytest.mark.parametrize("source", INPUT_FORMS)
def test_no_seeded_value_passes_the_second_mask_from_any_input(source):
    forms = [
        *INPUT_FORMS[source],
        lambda text: text,
        lambda text: "? " + text,
        FORMS["json of others"],
        FORMS["broken json"],
    ]
    left = []
    for number, form in enumerate(forms):
        for name, text, values in seeded():
            left += [(number, name, *one) for one in left_of(pipeline(source, form(text)), text, values)]
    assert left == []


def test_no_seeded_value_passes_the_second_mask_from_the_journal():
    for name, text, values in seeded():
        event = {
            "message": text, "event": {"dataset": "shiftmaster.journal"}, "@timestamp": "read",
            "process": {"pid": 7, "command_line": "sshd " + text, "args": ["sshd", text]},
            "journald": {"custom": {"x": text}},
        }  # fmt: skip
        assert left_of(PIPELINE.run(event), text, values) == [], name


def test_no_seeded_value_passes_the_first_mask():
    for name, text, values in seeded():
        found = in_python(MASKS, text)
        assert not [value for value in values if value in found], name


def test_no_seeded_value_passes_both_masks_and_nothing_is_masked_twice():
    for name, text, values in seeded():
        once = in_python(MASKS, text)
        both = fields(APP, LINE.format(1, once))
        complete = " ".join(map(str, both.values()))
        assert not [value for value in values if value in complete], name
        assert in_oniguruma(MASKS, once) == once, name


def test_false_masks_are_counted_and_listed():
    innocent = load("innocent.yml")
    lines = list(innocent["lines"])
    for name in FILES:
        lines += [line for case in load(name)["cases"] for line in case["lines"].split("\n")]
    # Not of JSON's lines: of these the fields are masked, and the test above compares each.
    lines = [line for line in lines if not line.lstrip().startswith("{") and "taro@example.jp" not in line]
    changed = [line for line in lines if in_python(MASKS, line) != line]
    listed = [row["line"] for row in innocent["changed"]]
    print(f"{len(changed)} of {len(lines)} innocent lines are changed by a mask")
    assert [line for line in changed if not any(line.endswith(wanted) for wanted in listed)] == []
    assert [wanted for wanted in listed if not any(line.endswith(wanted) for line in changed)] == []


# --- the configuration -----------------------------------------------------------------------------------------------


def test_the_grammar_of_logstash_accepts_it():
    """By an independent parser, made from Logstash's own grammar."""
    parsed = Oracle(TEXT).parse()
    assert [section[0] for section in parsed] == ["input", "filter", "output"]
    with pytest.raises(Exception, match="Expected"):
        Oracle(TEXT.replace("=> true", "= true", 1)).parse()


def test_both_parsers_of_the_grammar_read_the_same_filters():
    def names(block):
        for name, body in block:
            if name == "if":
                for _condition, inner in body:
                    yield from names(inner)
            else:
                yield name

    def oracle(node):
        if isinstance(node, list):
            if len(node) == 2 and isinstance(node[0], str) and node[0] in KNOWN and isinstance(node[1], list):
                yield node[0]
            else:
                for inner in node:
                    yield from oracle(inner)

    KNOWN = {"mutate", "grok", "json", "date", "fingerprint"}
    mine = list(names(read(TEXT)["filter"]))
    assert set(mine) == KNOWN
    assert list(oracle(Oracle(TEXT).parse()[1][1])) == mine


def test_the_model_refuses_what_it_does_not_know():
    for change in (("gsub =>", "gsubs =>"), ("grok {", "grook {"), ('method => "SHA256"', 'method => "MD5"')):
        with pytest.raises((Refused, AssertionError, AttributeError)):
            broken = Pipeline(TEXT.replace(*change), PATTERNS)
            broken.run(
                {
                    "message": LINE.format(1, "x"),
                    "event": {"dataset": "shiftmaster.app"},
                    "log": {"offset": 1, "file": {"fingerprint": "f"}},
                }
            )


def test_every_pattern_is_used_and_there():
    known = patterns(PATTERNS)
    used = set(re.findall(r"%\{([A-Z0-9_]+)[:}]", TEXT))
    for _ in known:
        used |= {inner for name in used & set(known) for inner in re.findall(r"%\{([A-Z0-9_]+)[:}]", known[name])}
    assert used - set(known) == set()
    assert set(known) - used == set()


def test_the_pattern_of_the_design():
    assert (
        r'"(?m)\A%{TIMESTAMP_ISO8601:[@metadata][ts]} \[%{LOGLEVEL:[log][level]}\] '
        r'%{NOTSPACE:[log][logger]}: %{GREEDYDATA:message}\z"' in TEXT
    )


def test_no_mask_of_a_site_can_break_the_configuration():
    assert not [mask for mask in MASKS if "{{" in mask["pattern"] or "{%" in mask["pattern"] or "{#" in mask["pattern"]]
    assert Path(PATTERNS).read_text(encoding="utf-8").endswith("\n")

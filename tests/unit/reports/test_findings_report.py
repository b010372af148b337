"""The report in words, as data and as a page."""

from __future__ import annotations

import copy
import datetime
import html.parser
import io
import json
import re
import tarfile
from pathlib import Path

import jsonschema
import pytest
import shiftmaster_findings
import yaml
from ansible.module_utils.shiftmaster.diagnosis import database
from ansible.module_utils.shiftmaster.reports import findings, findings_report

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parents[1] / "diagnosis"
UTC = {"name": "UTC", "offset_seconds": 0}
MADE = datetime.datetime(2026, 11, 26, 8, 0, tzinfo=datetime.timezone.utc)
RULES = [
    rule
    for path in sorted((ROOT / "diagnosis").glob("*.yml"))
    for rule in yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]
]
CASES = yaml.safe_load((HERE / "cases.yml").read_text(encoding="utf-8"))
HEALTHY = yaml.safe_load((HERE / "healthy.yml").read_text(encoding="utf-8"))


def changed(base, patch):
    if not isinstance(patch, dict) or not isinstance(base, dict):
        return copy.deepcopy(patch)
    return {**base, **{key: changed(base.get(key), value) for key, value in patch.items()}}


def parameters(*patches, **more):
    results = [
        {"host": f"h{number}", "functions": HEALTHY["functions"], "result": {"evidence": changed(HEALTHY, patch)}}
        for number, patch in enumerate(patches, 1)
    ]
    defaults = {name: option.get("default") for name, option in shiftmaster_findings.ARGUMENTS.items()}
    return dict(defaults, results=results, rules=RULES, **more)


DATABASE = changed(CASES["DatabaseStopped"]["fires"], {"parts": {"cluster": {"status": "absent"}}})
SERIES = {"parts": {"requests": {"series": [
    {"at": 1800000000 + 600 * number, "requests": 10 * number, "errors": number % 3, "p95_seconds": 0.1} for number in range(9)
]}}}  # fmt: skip


@pytest.mark.parametrize("language", findings.LANGUAGES)
def test_summary_contains_cause_and_action(language):
    response, files = shiftmaster_findings.evaluate(parameters(DATABASE, language=language), MADE)
    text = response["report_text"]
    assert files == {}
    assert "systemctl start postgresql" in text and "No such file or directory" in text
    assert ("PostgreSQL does not run on h1" if language == "en" else "h1 の PostgreSQL が停止しています") in text
    assert ("Follows from it" if language == "en" else "ここから生じている事象") in text
    assert ("DatabaseConnectionError.md" if language == "en" else "DatabaseConnectionError.ja.md") in text
    assert response["worst"] == "critical" and "h1: DatabaseStopped" in response["failing"]
    assert response["first"].startswith("h1: ")


def test_a_healthy_report_names_what_was_not_checked():
    hung = {"parts": {"containers": {"status": "failed", "error": "permission denied"}}}
    response, _files = shiftmaster_findings.evaluate(parameters(hung), MADE)
    assert "⚠️ Nothing is wrong in what was inspected" in response["report_text"]
    assert "h1: containers (permission denied)" in response["report_text"]
    assert response["failing"] == []


def test_an_unreachable_host_is_in_the_report():
    given = parameters({})
    given["results"].append(
        {"host": "gone", "functions": ["database"], "result": {"unreachable": True, "msg": "No route"}}
    )
    response, _files = shiftmaster_findings.evaluate(given, MADE)
    assert "gone does not respond" in response["report_text"] and response["failing"] == ["gone: HostUnreachable"]


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", r"ot everything could be inspected: (database, firewall|firewall, database)\."),
        ("ja", r"確認できなかった項目があります: (database, firewall|firewall, database)。"),
    ],
)
def test_parts_that_could_not_be_checked_are_reported_in_the_headline(language, words):
    """The headline must not call unchecked parts healthy."""
    blind = {name: {"status": "failed", "error": f"no response of {name}"} for name in ("database", "firewall")}
    given = parameters({"parts": blind}, directory="/x", language=language)
    response, files = shiftmaster_findings.evaluate(given, MADE)
    assert response["failing"] == [] and response["worst"] == "healthy"
    for output in (response["report_text"], files["diagnosis.html"], response["first"]):
        assert re.search(words, output), output
        assert findings_report.say(language, "nothing") not in output and "✅" not in output
    assert "(no response of firewall)" in response["report_text"]
    # Next to a fault, too.
    both = {"parts": {**blind, **CASES["DiskFull"]["fires"]["parts"]}}
    assert re.search(words, shiftmaster_findings.evaluate(parameters(both, language=language), MADE)[0]["report_text"])


@pytest.mark.parametrize("patch", [{}, DATABASE, SERIES, {"parts": {}}], ids=["well", "ill", "charts", "nothing"])
def test_data_follows_its_schema(patch):
    schema = json.loads((ROOT / "docs" / "diagnosis.schema.json").read_text(encoding="utf-8"))
    response, _files = shiftmaster_findings.evaluate(parameters(patch, {}), MADE)
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(response["report"])))


def test_the_schema_refuses_what_is_no_report():
    schema = json.loads((ROOT / "docs" / "diagnosis.schema.json").read_text(encoding="utf-8"))
    response, _files = shiftmaster_findings.evaluate(parameters(DATABASE), MADE)
    for broken in (
        dict(response["report"], worst="bad"),
        dict(response["report"], findings=[dict(response["report"]["findings"][0], title={"en": "x"})]),
        {key: value for key, value in response["report"].items() if key != "hosts"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(broken)))


ELEMENTS = set(
    "html head meta title link style body main section article header footer nav h1 h2 h3 p ul ol li dl dt dd a div span code pre strong "
    "details summary table thead tbody tr th td time figure figcaption svg path rect polyline text br".split()
)


class Reader(html.parser.HTMLParser):
    """Collects what could load something, and checks that elements are closed in their order."""

    EMPTY = {"meta", "link", "br", "path", "rect", "polyline", "text"}

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.tags, self.words = [], [], set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        self.loads += [found[name] for name in ("src", "href", "srcset", "data", "action") if name in found]
        self.loads += [tag] if tag in ("script", "iframe", "object", "embed") else []
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("language", findings.LANGUAGES)
def test_page_loads_nothing_else(tmp_path, language):
    patch = changed(DATABASE, SERIES)
    _response, files = shiftmaster_findings.evaluate(
        parameters(patch, {}, directory=str(tmp_path), language=language), MADE
    )
    text = files["diagnosis.html"]
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert reader.loads == ["data:,"], "something would be fetched or run"
    assert "@import" not in text and "url(" not in text
    assert {"svg", "details", "table", "figure"} <= reader.tags and reader.tags - ELEMENTS == set()
    assert f'<html lang="{language}">' in text and 'name="viewport"' in text
    words = " ".join(reader.words)
    # The severity is a word, not only a colour.
    assert (" critical " if language == "en" else "重大") in f" {words} "
    assert "{{" not in text


def test_output_of_a_host_is_escaped_in_the_page():
    bad = {"parts": {"units": {"units": [
        {"unit": "<script>alert(1)</script>.service", "required": False, "active": "failed", "result": "x", "last_words": ["<b>"]}
    ]}}}  # fmt: skip
    _response, files = shiftmaster_findings.evaluate(parameters(bad, directory="/x"), MADE)
    assert "<script" not in files["diagnosis.html"] and "&lt;script&gt;" in files["diagnosis.html"]


def test_database_tables_are_in_the_page():
    tables = {"parts": {"database": {"tables": [{"schema": "public", "table": "roster", "bytes": 2048}],
                                     "slowest_on_average": [], "duplicate_indexes": []}}}  # fmt: skip
    _response, files = shiftmaster_findings.evaluate(parameters(tables, directory="/x"), MADE)
    page = files["diagnosis.html"]
    assert "<td>roster</td>" in page and "2 KiB" in page and "Statements that take longest on average" in page
    # Where pg_stat_statements is missing, the page reports it.
    assert "not known (pg_stat_statements)" in page


def test_timeline_has_deploys_restarts_kills_and_errors_in_order():
    patch = {"parts": {
        "release": {"deploys": [{"time": "2026-11-26T07:00:00Z", "event": "live", "kind": "deploy", "target": "t"}]},
        "changes": {"events": [{"at": 1795678000.0, "kind": "unit", "text": "Stopped nginx"}]},
        "kills": {"kills": [{"at": 1795679000.0, "name": "celery", "unit": "w", "host_wide": False}]},
        "logs": {"files": {"application": {"problems": [{"first": 1795677000.0, "last": 2.0, "count": 3, "text": "x", "exception": "E"}]}}},
    }}  # fmt: skip
    events = findings_report.timeline([dict(changed(HEALTHY, patch), host="a")])
    assert [event["kind"] for event in events] == ["kill", "unit", "deploy", "error"] or len(events) == 4
    assert events == sorted(events, key=lambda event: -event["at"])
    assert {event["kind"] for event in events} == {"deploy", "unit", "kill", "error"}


def test_bars_are_hatched_where_they_are_long():
    assert 'd="M4 0' in findings_report.bar("x", 91.0) and 'd="M4 0' not in findings_report.bar("x", 60.0)


def test_line_chart_writes_its_largest_value():
    chart = findings_report.line_chart("x", [(0, 1.0), (60, 5.0), (120, 0.0)], UTC)
    points = re.search(r'points="([^"]*)"', chart)[1].split()
    assert ">5<" in chart and len(points) == 3
    assert float(points[1].split(",")[1]) < float(points[0].split(",")[1]) < float(points[2].split(",")[1])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.12345, "0.123"), (5, "5"), (619, "619"), (1234, "1234"), (172800, "173k"), (5169600, "5.17M")],
)
def test_numbers_have_room_next_to_their_axis(value, shown):
    assert findings_report.short(value) == shown and len(shown) <= 5


def test_line_chart_of_percentages_reaches_to_a_hundred():
    chart = findings_report.line_chart("x", [(0, 50.0), (60, 25.0)], UTC, 100.0)
    heights = [float(point.split(",")[1]) for point in re.search(r'points="([^"]*)"', chart)[1].split()]
    assert ">100<" in chart and 'max 50"' in chart and heights == [47.5, 63.8]


# --- alerts and usage of the last hours -------------------------------------------------------------------------------


def alert(name, start, end, instance="a"):
    return {"name": name, "severity": "critical", "instance": instance, "start": start, "end": end}


def with_history(name, *alerts, **more):
    part = {"status": "ok", "source": "prometheus", "alerts": list(alerts), "usage": {}, **more}
    return dict(changed(HEALTHY, {"parts": {"history": part, "release": {"deploys": []}}}), host=name, at=1000.0)


def test_alerts_begin_and_end_in_the_timeline():
    one = with_history("mon", alert("Ended", 100.0, 400.0), alert("Fires", 500.0, None), alert("Old", None, 300.0),
                       alert("Always", None, None), alert("OfNobody", 600.0, None, ""))  # fmt: skip
    shown = {
        language: [(event["at"], event["host"], event["text"]) for event in findings_report.timeline([one], language)]
        for language in findings.LANGUAGES
    }
    assert shown["en"] == [
        (1000.0, "a", "Always (critical) was firing already; when it began is not known"),
        (600.0, "mon", "OfNobody (critical) began"),
        (500.0, "a", "Fires (critical) began"),
        (400.0, "a", "Ended ended after 5 min"),
        (300.0, "a", "Old ended"),
        (100.0, "a", "Ended (critical) began"),
    ]
    assert [text for _at, _host, text in shown["ja"]][1:4] == [
        "OfNobody(重大)が発報", "Fires(重大)が発報", "Ended が解消(5 min 継続)",
    ]  # fmt: skip
    assert {event["kind"] for event in findings_report.timeline([one])} == {"alert"}


@pytest.mark.parametrize(
    ("language", "heading", "shown"),
    [
        ("en", "Alerts that fire", [
            "a: Always (critical), since before these hours  docs/runbooks/Always.md",
            "a: Fires (critical), since 1970-01-01 00:08 UTC  docs/runbooks/Fires.md",
            "mon: OfNobody (warning), since 1970-01-01 00:10 UTC  docs/runbooks/OfNobody.md",
        ]),
        ("ja", "発報中のアラート", [
            "a: Always (重大), 表示期間より前から  docs/runbooks/Always.ja.md",
            "a: Fires (重大), 1970-01-01 00:08 UTC から  docs/runbooks/Fires.ja.md",
            "mon: OfNobody (警告), 1970-01-01 00:10 UTC から  docs/runbooks/OfNobody.ja.md",
        ]),
    ],
)  # fmt: skip
def test_the_report_lists_the_firing_alerts(language, heading, shown):
    nobody = dict(alert("OfNobody", 600.0, None, ""), severity="warning")
    history = {"status": "ok", "source": "prometheus", "usage": {}, "alerts": [
        alert("Ended", 100.0, 400.0), nobody, alert("Fires", 500.0, None), alert("Always", None, None),
    ]}  # fmt: skip
    second = dict(history, alerts=[alert("Fires", 530.0, None)])
    response, files = shiftmaster_findings.evaluate(
        parameters({"parts": {"history": history}}, {"parts": {"history": second}}, directory="/x", language=language),
        MADE,
    )
    text, page = response["report_text"], files["diagnosis.html"]
    first = shown[2].replace("mon:", "h1:")
    assert heading + ":\n" + "".join("   %s\n" % line for line in [*shown[:2], first]) in text + "\n"
    assert "".join("<li>%s</li>" % line for line in [*shown[:2], first]) in page
    # They are no findings.
    quiet, _files = shiftmaster_findings.evaluate(parameters({}, {}, directory="/x", language=language), MADE)
    assert response["report"]["findings"] == quiet["report"]["findings"]


def test_without_a_firing_alert_the_section_is_omitted():
    history = {"status": "ok", "source": "prometheus", "usage": {}, "alerts": [alert("Ended", 100.0, 400.0)]}
    response, files = shiftmaster_findings.evaluate(parameters({"parts": {"history": history}}, directory="/x"), MADE)
    assert "Alerts that fire" not in response["report_text"] + files["diagnosis.html"]


def test_an_alert_of_two_prometheus_is_listed_once():
    hosts = [
        with_history("mon1", alert("A", 100.0, 400.0), alert("A", 700.0, 760.0)),
        with_history("mon2", alert("A", 130.0, 400.0)),
    ]
    events = findings_report.timeline(hosts)
    assert [event["at"] for event in events] == [760.0, 700.0, 400.0, 100.0]


@pytest.mark.parametrize("language", findings.LANGUAGES)
def test_page_shows_alerts_and_charts_of_every_host_in_one_zone(language):
    usage = {f"h{number}": {"cpu": [[1800000000, 10.0], [1800003600, 90.0 + number]], "memory": [[1800000000, 40.0], [1800003600, 41.0]]}
             for number in (1, 2)}  # fmt: skip
    history = {
        "status": "ok",
        "source": "prometheus",
        "usage": usage,
        "alerts": [alert("HighCPUUsage", 1800000000.0, None, "h2")],
    }
    patch = {"zone": {"name": "JST", "offset_seconds": 32400}, "parts": {"history": history}}
    response, files = shiftmaster_findings.evaluate(
        parameters(patch, {"zone": {"name": "JST", "offset_seconds": 32400}}, directory="/x", language=language), MADE
    )
    page, text = files["diagnosis.html"], response["report_text"]
    for number in (1, 2):
        assert (
            f'CPU(%): max {90 + number}"' in page if language == "ja" else f'Processor, %: max {90 + number}"' in page
        )
    assert ("HighCPUUsage(重大)が発報" if language == "ja" else "HighCPUUsage (critical) began") in page
    # 2027-01-15 08:00 UTC.
    assert "<td>01-15 17:00:00</td>" in page and ">17:00<" in page and "08:00" not in re.sub("<details.*", "", page)
    for shown in (page, text):
        assert "JST (UTC+09:00)" in shown and "2026-11-26 17:00:00" in shown


def test_a_host_that_writes_its_logs_in_another_zone_is_named():
    here = {"zone": {"name": "JST", "offset_seconds": 32400}}
    response, files = shiftmaster_findings.evaluate(
        parameters(here, here, {"zone": {"name": "UTC", "offset_seconds": 0}}, directory="/x"), MADE
    )
    for shown in (response["report_text"], files["diagnosis.html"]):
        assert "JST (UTC+09:00); log lines of h3: UTC" in shown


def test_the_local_history_of_a_host_is_drawn_where_there_is_no_prometheus():
    usage = {"": {"cpu": [[0, 1.0], [60, 2.0]], "memory": []}}
    patch = {"parts": {"history": {"status": "ok", "source": "sysstat", "alerts": [], "usage": usage}}}
    _response, files = shiftmaster_findings.evaluate(parameters(patch, {}, directory="/x"), MADE)
    assert files["diagnosis.html"].count("Processor, %") == 2 and "Memory, %" not in files["diagnosis.html"]


# --- the database in a terminal ---------------------------------------------------------------------------------------


def columns_of_queries():
    """Every name that a query of a table of the report gives."""
    for name, query in {**database.QUERIES, **database.STATEMENTS}.items():
        if name in findings_report.DATABASE_TABLES:
            selected = re.split(r"\bFROM pg_", query)[0]
            yield from re.findall(r"\bAS (\w+)(?=\s*,|\s*$)", selected, re.M)
            yield from re.findall(r"(?:^\s*SELECT|,)\s+(?:\w\.)?(\w+)(?=\s*,|\s*$)", selected, re.M)


def test_every_column_has_a_heading_in_both_languages():
    named = set(columns_of_queries()) - {"datname", "usename"}
    assert len(named) > 30 and named - set(findings_report.COLUMNS) == set()
    shown = {column for columns in findings_report.TERMINAL_COLUMNS.values() for column in columns}
    assert shown - set(findings_report.COLUMNS) == set()


ROWS = [{"schema": "public", "table": f"roster_{number}", "bytes": 2048 << number, "index_bytes": 0, "rows": number, "dead_rows": 1,
         "scans": 5, "scanned_rows": 9, "index_scans": 1, "index_rows": 7, "vacuumed_seconds_ago": None, "analysed_seconds_ago": 7200}
        for number in range(14)]  # fmt: skip
DATABASE_TABLES = {"parts": {"database": {
    "tables": ROWS,
    "slowest_on_average": [{"query": "SELECT 職員名 " + "x" * 500, "calls": 9, "mean_ms": 210.5, "total_ms": 1900, "rows": 3}],
    "duplicate_indexes": [], "databases": [{"name": "shiftmaster", "bytes": 50000000, "age": 4000000, "deadlocks": 0, "temp_bytes": 0}],
}}}  # fmt: skip


@pytest.mark.parametrize("language", findings.LANGUAGES)
def test_database_tables_are_in_the_terminal_for_its_area_alone(language):
    text = {
        area: shiftmaster_findings.evaluate(parameters(DATABASE_TABLES, area=area, language=language), MADE)[0][
            "report_text"
        ]
        for area in ("db", "app", "all")
    }
    title = "Largest tables" if language == "en" else "大きな表"
    assert title in text["db"] and title not in text["app"] + text["all"]
    lines = text["db"].splitlines()[
        next(number for number, line in enumerate(text["db"].splitlines()) if "PostgreSQL 17.6" in line) :
    ]
    assert max(findings_report.wide(line) for line in lines) <= findings_report.TERMINAL_WIDTH
    assert "roster_9 " in text["db"] and "roster_10" not in text["db"]
    assert ("… and 4 more" if language == "en" else "ほか 4 件") in text["db"]
    assert ("Duplicate indexes: none" if language == "en" else "重複インデックス: なし") in text["db"]
    # Where pg_stat_statements gave nothing, nothing is claimed.
    assert (
        "together: not known (pg_stat_statements)"
        if language == "en"
        else "合計実行時間の長い文: 不明 (pg_stat_statements)"
    ) in text["db"]
    for heading in ("dead rows", "vacuumed ago") if language == "en" else ("不要行", "VACUUM からの経過"):
        assert heading in text["db"]
    assert "SELECT 職員名 xx" in text["db"] and "x…" in text["db"]


def test_columns_of_a_terminal_are_aligned():
    rows = [{"table": "職員", "bytes": 1024}, {"table": "roster", "bytes": 1 << 30}]
    lines = findings_report.terminal_table(["table", "bytes"], rows, "ja")
    assert lines == ["   表      サイズ", "   職員     1 KiB", "   roster   1 GiB"]


@pytest.mark.parametrize("language", findings.LANGUAGES)
def test_headings_of_the_pages_tables_are_in_its_language(language):
    hung = {"parts": {"containers": {"status": "failed", "error": "permission denied"}}}
    _response, files = shiftmaster_findings.evaluate(
        parameters(changed(DATABASE_TABLES, hung), directory="/x", language=language), MADE
    )
    heads = set(re.findall(r"<th>([^<]*)</th>", files["diagnosis.html"]))
    wanted = {"dead rows", "part", "when"} if language == "en" else {"不要行", "項目", "日時"}
    assert wanted <= heads and not [head for head in heads if "_" in head]
    assert '<td class="number">2 h</td>' in files["diagnosis.html"], "a time without its unit"


def test_bundle_is_listed_summed_and_bounded():
    content, listed = findings_report.bundle({"a.txt": "x" * 100, "b.json": "y" * 5000}, MADE, limit=1000)
    assert len(listed) == 2 and "(cut)" in listed[1] and "(cut)" not in listed[0]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        sizes = {member.name: member.size for member in archive.getmembers()}
        names = archive.extractfile("shiftmaster-diagnosis/LIST").read().decode()
    assert sizes["shiftmaster-diagnosis/a.txt"] == 100 and sizes["shiftmaster-diagnosis/b.json"] == 900
    assert names.splitlines() == listed


def test_files_are_their_owners_alone(tmp_path, run_module):
    directory = tmp_path / "report"
    given = {key: value for key, value in parameters(DATABASE).items() if value is not None}
    checked = run_module(shiftmaster_findings, check_mode=True, **dict(given, directory=str(directory), bundle=True))
    assert not directory.exists() and checked["files"] == []
    response = run_module(shiftmaster_findings, **dict(given, directory=str(directory), bundle=True))
    assert sorted(path.name for path in directory.iterdir()) == [
        "diagnosis-bundle.tar.gz", "diagnosis.html", "diagnosis.json", "diagnosis.txt",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert directory.stat().st_mode & 0o777 == 0o700 and len(response["bundle_list"]) == 3
    # A directory that cannot be written costs the files, not the diagnosis.
    (tmp_path / "file").touch()
    lost = run_module(shiftmaster_findings, **dict(given, directory=str(tmp_path / "file" / "x")))
    assert lost["worst"] == "critical" and lost["files"] == [] and "could not be written" in lost["not_written"]

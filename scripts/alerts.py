#!/usr/bin/env python3
"""Writes Prometheus' rules and the runbooks from monitoring/; with --check, lists those that are not up to date.

monitoring/alerts/<service>.yml is the one source of every alert, in both languages. From it come monitoring/rules/*.yml
and docs/runbooks/<Alert>.md and .ja.md. What only the diagnosis finds gets its runbook from
diagnosis/*.yml. monitoring/recordings.yml is the source of the recording rules.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "module_utils"))
from shiftmaster.host.texts import LANGUAGES, Texts, pick  # noqa: E402

MONITORING = ROOT / "monitoring"
DIAGNOSIS = ROOT / "diagnosis"
RUNBOOKS = ROOT / "docs" / "runbooks"
SEVERITIES = ("critical", "warning", "info", "none")
SERVICES = (
    "application celery database cache web host container backup monitoring tls logging".split()
)  # what a message may be about

# What an entry of `alerts` holds. `service`, `where` and `dashboard` may be set once for the file.
FIELDS = {
    "name": "the alert's name, for good: silences and runbooks are found by it",
    "group": "the rule group; shiftmaster.alerts holds the six of the operations guide",
    "expr": "PromQL; a threshold stands next to its comparison, where the mutation check finds it",
    "for": "how long it has to hold",
    "keep_firing_for": "how long it continues after its end: for what it silences, which ends later",
    "severity": "critical (users notice it, or data are in danger), warning, info, none (Watchdog)",
    "notify": "page or business_hours (critical alerts), a template of Prometheus that gives one of both, or report; "
    "default: page for critical alerts, else report",
    "service": "what it is about",
    "where": "the hosts on which its commands are typed: a key of WHERE",
    "dashboard": "uid of the dashboard to open",
    "depends_on": "what it needs: application, cache, database; silent while that is down (inhibitions.yml)",
    "summary": "{en, ja}: one line, a template of Prometheus",
    "description": "{en, ja}: a sentence or two, a template of Prometheus; the first look is added",
    "meaning": "{en, ja}: what is the matter, for whoever reads it by night",
    "inspect": "commands that show more, the first one also in the message",
    "causes": "the likeliest first: cause {en, ja}, check (a command), fix (a command) or advice {en, ja}, or both",
    "links": "chapters of the operations guide",
}
OPTIONAL = {"depends_on", "keep_firing_for", "notify"}
NOTIFY = {
    "page": ("at any hour", "随時"),
    "business_hours": ("in business hours", "業務時間内"),
    "report": ("no", "なし"),
}

# Evaluated as often as their targets are scraped; everything else each 15 seconds.
FAST = {"shiftmaster.alerts", "shiftmaster.database.fast", "shiftmaster.host.fast"}
FAST_SECONDS, SECONDS = 5, 15
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

WHERE = {
    "app": ("on an application host", "アプリケーションホスト"),
    "web": ("on the web host", "Web ホスト"),
    "database": ("on the database host", "データベースホスト"),
    "cache": ("on the host of Redis", "Redis のホスト"),
    "monitoring": ("on the monitoring host", "監視ホスト"),
    "logging": ("on the host of Elasticsearch", "Elasticsearch のホスト"),
    "logstash": ("on the host of Logstash", "Logstash のホスト"),
    "backup": ("on the host that keeps the backups", "バックアップを保管するホスト"),
    "host": ("on the host that the message names", "通知に示されたホスト"),
    "controller": ("on your machine, in the directory of this repository", "手元のマシンのこのリポジトリ"),
}
SAYS = Texts({
    "written": (
        "Written by scripts/alerts.py from {source}: change that, then `make alerts`.",
        "scripts/alerts.py が {source} から生成しています。変更はそちらで行い、`make alerts` を実行してください。",
    ),
    "table": (
        "| severity | pages | service | fires after | dashboard |",
        "| 重要度 | 呼び出し | サービス | 発生までの時間 | ダッシュボード |",
    ),
    "silent": (
        "Not sent while one of these is down: {parts}.",
        "次のいずれかが停止している間は送られません: {parts}。",
    ),
    "meaning": ("Meaning", "意味"),
    "condition": ("It fires on:", "発生条件:"),
    "inspect": ("First check", "最初の確認"),
    "typed": (
        "Typed as root {where}; what begins with `ansible` on your machine, in the directory of this repository.",
        "{where}で root として入力します。`ansible` で始まるものは、手元のマシンのこのリポジトリで入力します。",
    ),
    "causes": ("Causes, the likeliest first", "原因(可能性の高い順)"),
    "check": ("See whether it is so:", "確認:"),
    "fix": ("Fix it:", "対処:"),
    "links": ("Read on", "関連"),
    "guide": ("Operations guide: {title}", "運用ガイド: {title}"),
    "all": ("All runbooks", "手順書一覧"),
    "title": ("Runbooks", "手順書"),
    "intro": (
        "One page for each alert: what it means, what to look at, and the causes, each with a check and a fix.",
        "アラートごとに 1 ページです。意味、最初の確認、原因(可能性の高い順)とその確認方法・対処をまとめています。",
    ),
    "index": ("| alert | severity | message |", "| アラート | 重要度 | 内容 |"),
    "diagnosis": ("Findings of the diagnosis that no alert announces", "診断でのみ検出される事項"),
    "diagnosed": ("| finding | severity | what it means |", "| 検出事項 | 重要度 | 意味 |"),
    "found": ("The diagnosis finds it ({severity}, {component}):", "診断で検出されます({severity}、{component}):"),
    "do": ("Actions", "対処"),
    "first": ("First, {where}: {command}", "まず、{where}で: {command}"),
})  # fmt: skip
say = SAYS.say


def seconds(duration: str) -> int:
    return int(duration[:-1]) * UNITS[duration[-1]]


def load(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)


def joined(value: Any) -> Any:
    """Folded Japanese has no spaces where its lines met."""
    if isinstance(value, dict):
        return {
            key: re.sub(r"(?<=[^\x00-\xff]) (?=[^\x00-\xff])", "", text) if key == "ja" else joined(text)
            for key, text in value.items()
        }
    return [joined(inner) for inner in value] if isinstance(value, list) else value


def catalogue() -> list[dict[str, Any]]:
    """Every alert, with the values that its file sets for all of them."""
    alerts = []
    for path in sorted((MONITORING / "alerts").glob("*.yml")):
        content = load(path)
        common = {key: content[key] for key in ("service", "where", "dashboard")}
        alerts += [{**common, **joined(alert), "source": path.name} for alert in content["alerts"]]
    return alerts


# --- rules ----------------------------------------------------------------------------------------------------------


def place(alert: dict[str, Any], command: str, language: str) -> str:
    key = "controller" if command.startswith("ansible") else alert["where"]
    return pick(language, WHERE[key])


def description(alert: dict[str, Any], language: str) -> str:
    """The text of a message, with the first action."""
    command = alert["inspect"][0]
    # Braces in a command, as docker has them, are no template of Prometheus.
    quoted = re.sub(r"{{.*?}}", lambda match: '{{ "%s" }}' % match[0].replace('"', '\\"'), command)
    first = say(language, "first", where=place(alert, command, language), command=quoted)
    return alert["description"][language] + (" " if language == "en" else "") + first


def notify(alert: dict[str, Any]) -> str:
    return alert.get("notify") or {"critical": "page", "none": ""}.get(alert["severity"], "report")


def pages(alert: dict[str, Any], language: str) -> str:
    found = [pick(language, texts) for word, texts in NOTIFY.items() if re.search(rf"\b{word}\b", notify(alert))]
    return (" / " if language == "en" else "、").join(found) or "–"


def rule(alert: dict[str, Any]) -> dict[str, Any]:
    labels = {"severity": alert["severity"], "service": alert["service"]}
    if notify(alert):
        labels["notify"] = notify(alert)
    if alert.get("depends_on"):
        labels["depends_on"] = ",".join(sorted(alert["depends_on"]))
    result = {"alert": alert["name"], "expr": alert["expr"].strip()}
    if seconds(alert["for"]):
        result["for"] = alert["for"]
    if "keep_firing_for" in alert:
        result["keep_firing_for"] = alert["keep_firing_for"]
    return {
        **result,
        "labels": labels,
        "annotations": {
            "summary": alert["summary"]["en"],
            "summary_ja": alert["summary"]["ja"],
            "description": description(alert, "en"),
            "description_ja": description(alert, "ja"),
            "runbook_url": f"docs/runbooks/{alert['name']}.md",
            "dashboard": alert["dashboard"],
        },
    }


def recordings(group: dict[str, Any]) -> list[dict[str, Any]]:
    rules = []
    for entry in group["rules"]:
        for window in entry.get("windows", [""]):
            made = {key: entry[key].replace("<window>", window) for key in ("record", "expr")}
            rules.append({**made, **({"labels": entry["labels"]} if "labels" in entry else {})})
    return rules


def groups(alerts: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """{file below monitoring/rules: [groups]}"""
    files: dict[str, list[dict[str, Any]]] = {
        "recordings.yml": [
            {"name": group["name"], "interval": f"{group['interval_seconds']}s", "rules": recordings(group)}
            for group in load(MONITORING / "recordings.yml")["groups"]
        ]
    }
    for alert in alerts:
        name = alert["group"]
        # The operations guide names this file; the others are named like their source.
        file = "shiftmaster.yml" if name == "shiftmaster.alerts" else alert["source"]
        found = next((group for group in files.setdefault(file, []) if group["name"] == name), None)
        if found is None:
            found = {"name": name, "interval": f"{FAST_SECONDS if name in FAST else SECONDS}s", "rules": []}
            files[file].append(found)
        found["rules"].append(rule(alert))
    return files


class Dumper(yaml.SafeDumper):
    """Several lines stay several lines."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def dump(content: Any) -> str:
    return yaml.dump(content, Dumper=Dumper, allow_unicode=True, sort_keys=False, width=10**6)


def rule_file(name: str, content: list[dict[str, Any]]) -> str:
    sources = "monitoring/recordings.yml" if name == "recordings.yml" else "monitoring/alerts"
    return (
        f"---\n# Written by scripts/alerts.py from {sources}: change that, then `make alerts`.\n"
        "# One sentence is one line.\n# yamllint disable rule:line-length\n" + dump({"groups": content})
    )


# --- runbooks -------------------------------------------------------------------------------------------------------


@functools.cache
def headings(path: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"^#+ (.*)$", text, re.M)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-")


def link(target: str, language: str) -> str:
    """A chapter of the guide in this language, or a part of one: both have the same headings in the same order."""
    path, _, part = target.partition("#")
    english = [anchor(heading) for heading in headings(ROOT / path)]
    suffix = ".md" if language == "en" else ".ja.md"
    translated = ROOT / path.replace(".md", suffix)
    title = headings(translated)[english.index(part) if part else 0]
    place = f"{translated.name}#{anchor(title)}" if part else translated.name
    return f"- [{say(language, 'guide', title=title)}](../guide/{place})"


def plain(template: str) -> str:
    """A template of Prometheus for people: <instance> for a label, N for the value."""
    text = re.sub(r"{{ \$labels\.(\w+) }}", r"<\1>", template)
    return re.sub(r"{{.*?\$value.*?}}", "N", text)


def block(*commands: str) -> list[str]:
    return ["```", *commands, "```", ""]


def page(name: str, language: str) -> str:
    return f"{name}.md" if language == "en" else f"{name}.ja.md"


def head(name: str, title: str, language: str, source: str) -> list[str]:
    """The beginning of a page: its title, the way to the other language and to all pages, and what it is made from."""
    other, word = ("ja", "日本語") if language == "en" else ("en", "English")
    links = f"[{word}]({page(name, other)})"
    if name != "README":
        links += f" · [{say(language, 'all')}]({page('README', language)})"
    return [f"# {title}", "", links, "", f"<!-- {say(language, 'written', source=source)} -->", ""]


def runbook(alert: dict[str, Any], language: str) -> str:
    name = alert["name"]
    lines = [
        *head(name, name, language, f"monitoring/alerts/{alert['source']}"),
        f"**{escaped(plain(alert['summary'][language]))}**",
        "",
        say(language, "table"),
        "|---|---|---|---|---|",
        f"| {alert['severity']} | {pages(alert, language)} | {alert['service']} | {alert['for']} "
        f"| `{alert['dashboard']}` |",
        "",
    ]
    if alert.get("depends_on"):
        lines += [say(language, "silent", parts=", ".join(sorted(alert["depends_on"]))), ""]
    lines += [f"## {say(language, 'meaning')}", "", alert["meaning"][language].strip(), ""]
    lines += [say(language, "condition"), "", "```promql", alert["expr"].strip(), "```", ""]
    where = pick(language, WHERE[alert["where"]])
    lines += [f"## {say(language, 'inspect')}", "", say(language, "typed", where=where), "", *block(*alert["inspect"])]
    lines += [f"## {say(language, 'causes')}", ""]
    for number, cause in enumerate(alert["causes"], 1):
        lines += [f"### {number}. {cause['cause'][language].strip()}", ""]
        lines += [say(language, "check"), "", *block(cause["check"])]
        lines += [" ".join([say(language, "fix"), cause.get("advice", {}).get(language, "")]).strip(), ""]
        lines += block(cause["fix"]) if "fix" in cause else []
    if alert["links"]:
        lines += [f"## {say(language, 'links')}", "", *(link(target, language) for target in alert["links"])]
    return "\n".join(lines).rstrip("\n") + "\n"


def findings() -> list[dict[str, Any]]:
    """The rules of the diagnosis that share no alert's runbook, with the file that they are in."""
    return [
        {**rule, "source": path.name}
        for path in sorted(DIAGNOSIS.glob("*.yml"))
        for rule in load(path)["rules"]
        if "alert" not in rule
    ]


def finding_runbook(rule: dict[str, Any], language: str) -> str:
    """The page of a finding that no alert announces."""
    name, where = rule["name"], pick(language, WHERE["host"])
    lines = head(name, name, language, "diagnosis/" + rule["source"])
    lines += [f"## {say(language, 'meaning')}", "", rule["guide"][language].strip(), ""]
    lines += [say(language, "found", severity=rule["severity"], component=rule["component"]), ""]
    lines += [*block("ansible-playbook playbooks/diagnose.yml"), f"## {say(language, 'do')}", ""]
    lines += [say(language, "typed", where=where), "", *block(*rule["commands"])]
    return "\n".join(lines).rstrip("\n") + "\n"


def escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def index(alerts: list[dict[str, Any]], language: str) -> str:
    lines = [*head("README", say(language, "title"), language, "monitoring/alerts"), say(language, "intro"), ""]
    for service in sorted({alert["service"] for alert in alerts}, key=SERVICES.index):
        lines += [f"## {service}", "", say(language, "index"), "|---|---|---|"]
        lines += [
            f"| [{alert['name']}]({page(alert['name'], language)}) | {alert['severity']} | "
            f"{escaped(plain(alert['summary'][language]))} |"
            for alert in sorted(
                (a for a in alerts if a["service"] == service), key=lambda a: SEVERITIES.index(a["severity"])
            )
        ]
        lines.append("")
    lines += [f"## {say(language, 'diagnosis')}", "", say(language, "diagnosed"), "|---|---|---|"]
    for rule in sorted(findings(), key=lambda rule: (SEVERITIES.index(rule["severity"]), rule["name"])):
        entry = f"[{rule['name']}]({page(rule['name'], language)})"
        lines.append(f"| {entry} | {rule['severity']} | {escaped(rule['guide'][language])} |")
    return "\n".join(lines).rstrip("\n") + "\n"


# --- all of it ------------------------------------------------------------------------------------------------------


def outputs() -> dict[Path, str]:
    alerts = catalogue()
    made = {MONITORING / "rules" / name: rule_file(name, content) for name, content in groups(alerts).items()}
    for language in LANGUAGES:
        made[RUNBOOKS / page("README", language)] = index(alerts, language)
        made.update({RUNBOOKS / page(alert["name"], language): runbook(alert, language) for alert in alerts})
        made.update({RUNBOOKS / page(rule["name"], language): finding_runbook(rule, language) for rule in findings()})
    return made


if __name__ == "__main__":
    # Here, since tests load this file from elsewhere.
    import generated

    there = [*(MONITORING / "rules").glob("*.yml"), *RUNBOOKS.glob("*.md")]
    sys.exit(generated.main(outputs(), there, "`make alerts`"))

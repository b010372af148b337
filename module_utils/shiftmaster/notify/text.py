"""Texts about an event of the playbooks, in Japanese and English, and in each channel's form.

Pure functions: the same input gives the same message, and no message is longer than its channel documents.
"""

from __future__ import annotations

import html
import re

from ..host.printable import printable

# For each event the severity of a failure at PagerDuty, and its component. A failed deploy leaves what served before;
# users notice an unwell system.
EVENTS = {
    "deploy": ("error", "application"),
    "rollback": ("critical", "application"),
    "backup": ("error", "backup"),
    "restore": ("critical", "backup"),
    "health": ("critical", "shiftmaster"),
    "checklist": ("warning", "shiftmaster"),
    "test": ("info", "notification"),
}
STATUSES = ("started", "succeeded", "warning", "failed")

# Slack: "Truncating really long messages" recommends texts of up to 4,000 characters.
SLACK_TEXT = 4000
# PagerDuty: "Send an Alert Event" and "Send a Change Event".
PAGERDUTY_SUMMARY = 1024
PAGERDUTY_DEDUP_KEY = 255
# A subject beyond that is cut by most mail programs anyway.
SUBJECT = 200
# One detail; what is longer belongs into the run's own log.
DETAIL = 600

COLOURS = {"started": "#439FE0", "succeeded": "good", "warning": "warning", "failed": "danger"}
# What a change event is sent for: something on the service is other than before.
CHANGES = ("deploy", "rollback", "restore")

CHECKLISTS = {
    "morning": ("Morning checklist", "朝のチェックリスト"),
    "evening": ("Evening checklist", "夕方のチェックリスト"),
    "weekly": ("Weekly checklist", "週次チェックリスト"),
    "monthly": ("Monthly checklist", "月次チェックリスト"),
}
# What stands for a version that is not known.
UNNAMED = {"deploy": ("the application", "アプリケーション"), "rollback": ("the version before", "前のバージョン")}
# One line each: English, Japanese.
TITLES = {
    ("deploy", "started"): ("Deploy of {version} has begun", "{version} のデプロイを開始しました"),
    ("deploy", "succeeded"): ("{version} is deployed", "{version} をデプロイしました"),
    ("deploy", "warning"): ("{version} is deployed, with warnings", "{version} をデプロイしました(警告あり)"),
    ("deploy", "failed"): ("Deploy of {version} failed", "{version} のデプロイに失敗しました"),
    ("rollback", "started"): ("Rollback to {version} has begun", "{version} へのロールバックを開始しました"),
    ("rollback", "succeeded"): ("Rolled back to {version}", "{version} へロールバックしました"),
    ("rollback", "warning"): ("Rolled back to {version}, with warnings", "{version} へロールバックしました(警告あり)"),
    ("rollback", "failed"): ("Rollback to {version} failed", "{version} へのロールバックに失敗しました"),
    ("backup", "started"): ("Backup has begun", "バックアップを開始しました"),
    ("backup", "succeeded"): ("Backup is complete", "バックアップが完了しました"),
    ("backup", "warning"): ("Backup is complete, with warnings", "バックアップが完了しました(警告あり)"),
    ("backup", "failed"): ("Backup failed", "バックアップに失敗しました"),
    ("restore", "started"): ("Restore has begun", "リストアを開始しました"),
    ("restore", "succeeded"): ("Restore is complete", "リストアが完了しました"),
    ("restore", "warning"): ("Restore is complete, with warnings", "リストアが完了しました(警告あり)"),
    ("restore", "failed"): ("Restore failed", "リストアに失敗しました"),
    ("health", "started"): ("Health check has begun", "ヘルスチェックを開始しました"),
    ("health", "succeeded"): ("System is healthy", "システムは正常です"),
    ("health", "warning"): ("System Health Alert: warnings", "システム状態の警告があります"),
    ("health", "failed"): ("System Health Alert: unhealthy", "システム異常を検知しました"),
    ("checklist", "started"): ("{checklist} is being filled in", "{checklist}を作成しています"),
    ("checklist", "succeeded"): ("{checklist}: good", "{checklist}: 良好"),
    ("checklist", "warning"): ("{checklist}: not everything is known", "{checklist}: 確認できない項目があります"),
    ("checklist", "failed"): ("{checklist}: not everything is good", "{checklist}: 要対応の項目があります"),
    ("test", "started"): ("Test of the notifications", "通知のテスト"),
    ("test", "succeeded"): ("Test of the notifications", "通知のテスト"),
    ("test", "warning"): ("Test of the notifications: a warning", "通知のテスト(警告)"),
    ("test", "failed"): ("Test of the notifications: an alert", "通知のテスト(アラート)"),
}

# What the one who is woken by it does first.
ADVICE = {
    "deploy": (
        "Read the reason, then the run's output. Where users are affected: ansible-playbook rollback.yml",
        "理由と実行ログを確認してください。利用者に影響がある場合: ansible-playbook rollback.yml",
    ),
    "rollback": (
        "Check the site (ansible-playbook playbooks/health.yml), then repeat the rollback: it continues.",
        "稼働状況を確認し(ansible-playbook playbooks/health.yml)、ロールバックを再実行してください(続行します)。",
    ),
    "backup": (
        "Read the reason and repeat it today: until then the last good backup is the older one.",
        "理由を確認し、本日中に再実行してください。それまで有効なのは前回のバックアップです。",
    ),
    "restore": (
        "Let nobody write to the restored data before the reason is understood.",
        "原因が判明するまで、復元先のデータに書き込まないでください。",
    ),
    "health": (
        "ansible-playbook playbooks/health.yml names the unhealthy parts and the actions.",
        "ansible-playbook playbooks/health.yml で異常箇所と対処を確認してください。",
    ),
    "checklist": (
        "The attached page shows the evidence of each line.",
        "添付のページで各項目の確認結果を参照してください。",
    ),
    "test": ("Nothing has to be done.", "対応は不要です。"),
}

LABELS = {
    "environment": ("Environment", "環境"),
    "version": ("Version", "バージョン"),
    "previous": ("Before", "変更前"),
    "hosts": ("Hosts", "対象ホスト"),
    "user": ("By", "実行者"),
    "started": ("Since", "開始"),
    "duration": ("Took", "所要時間"),
    "reason": ("Reason", "理由"),
    "notes": ("Notes", "備考"),
    "advice": ("Action", "対応"),
}
# In which order, and which fit next to another in Slack's two columns.
ORDER = ("environment", "version", "previous", "hosts", "user", "started", "duration", "reason", "notes")


def cut(text, limit):
    """The text, or its beginning with an ellipsis."""
    text = str(text)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def one_line(text):
    return printable(re.sub(r"\s+", " ", str(text))).strip()


def languages(language):
    """Which of (English, Japanese) are written, in their order: with both, Japanese is first."""
    return {"en": [0], "ja": [1], "both": [1, 0]}[language]


def title(event, status, details, which):
    version = cut(one_line(details.get("version") or ""), 60) or UNNAMED.get(event, ("", ""))[which]
    checklist = CHECKLISTS.get(details.get("checklist"), ("Checklist", "チェックリスト"))[which]
    text = TITLES[(event, status)][which].replace("{version}", version).replace("{checklist}", checklist)
    return text[:1].upper() + text[1:] if version in UNNAMED.get(event, ()) else text


def titles(event, status, details, language):
    return " / ".join(title(event, status, details, which) for which in languages(language))


def shown(value):
    if isinstance(value, (list, tuple)):
        return ", ".join(one_line(item) for item in value)
    return printable(str(value)).strip()


def rows(event, status, environment, details, which):
    """What is known about the event: a list of (label, text)."""
    values = dict(details, environment=environment)
    found = [
        (LABELS[name][which], cut(shown(values[name]), DETAIL))
        for name in ORDER
        if values.get(name) not in ("", None, [])
    ]
    if status in ("failed", "warning"):
        found.append((LABELS["advice"][which], ADVICE[event][which]))
    return found


# --- Slack ------------------------------------------------------------------------------------------------------------


def slack_escape(text, limit=SLACK_TEXT):
    """The text in Slack's markup: these three characters as entities, and never cut within one."""
    text = str(text)
    while True:
        written = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        if len(written) <= limit:
            return written
        text = cut(text, max(2, len(text) - max(1, (len(written) - limit) // 5)))


def slack(event, status, environment, details, language, links, channel=""):
    """The message for an incoming webhook."""
    headline = titles(event, status, details, language)
    parts = []
    for which in languages(language):
        parts.append("\n".join("*%s*: %s" % (slack_escape(a), slack_escape(b, DETAIL)) for a, b in
                               rows(event, status, environment, details, which)))  # fmt: skip
    text = "\n\n".join(parts)
    if links:
        text += "\n" + "  ".join("<%s|%s>" % (one["href"], slack_escape(one["text"], 80)) for one in links[:5])
    attachment = {
        "color": COLOURS[status],
        "title": slack_escape("[ShiftMaster] " + headline, 500),
        "fallback": slack_escape("[ShiftMaster] " + headline, 500),
        "text": text if len(text) <= SLACK_TEXT else text[: text.rindex("\n", 0, SLACK_TEXT)],
        "mrkdwn_in": ["text"],
    }
    message = {"attachments": [attachment]}
    if channel:
        message["channel"] = channel
    return message


# --- PagerDuty --------------------------------------------------------------------------------------------------------


def dedup_key(event, environment):
    """One key for what fails and for what fixes it: a rollback that succeeds fixes a failed deploy."""
    subject = "release" if event in ("deploy", "rollback") else event
    return cut("shiftmaster/%s/%s" % (environment, subject), PAGERDUTY_DEDUP_KEY)


def pagerduty(event, status, environment, details, language, links, time):
    """The events for PagerDuty without their key: a list of (kind, event), kind being alert or change."""
    summary = cut("[ShiftMaster] %s (%s)" % (titles(event, status, details, language), environment), PAGERDUTY_SUMMARY)
    severity, component = EVENTS[event]
    custom = {"component": component, "time": time, "environment": environment}
    custom.update(
        {name: cut(shown(value), DETAIL) for name, value in sorted(details.items()) if value not in ("", None, [])}
    )
    links = [{"href": one["href"], "text": cut(one["text"], 80)} for one in links[:5]]
    found = []
    if status in ("succeeded", "warning") and event in CHANGES:
        payload = {"summary": summary, "source": "shiftmaster", "timestamp": time, "custom_details": custom}
        found.append(("change", {"payload": payload, "links": links}))
    # A test that only resolved what nobody had opened would be dropped by PagerDuty and show nothing.
    if status == "failed" or event == "test" and status != "started":
        advice = " / ".join(ADVICE[event][which] for which in languages(language))
        payload = {
            "summary": summary,
            "source": "shiftmaster",
            "severity": severity,
            "timestamp": time,
            "component": component,
            "group": environment,
            "class": event,
            "custom_details": dict(custom, advice=advice),
        }
        trigger = {"event_action": "trigger", "dedup_key": dedup_key(event, environment), "payload": payload}
        found.append(("alert", dict(trigger, links=links, client="ShiftMaster")))
    if status in ("succeeded", "warning"):
        # Where nothing is open under this key, PagerDuty drops it.
        found.append(("alert", {"event_action": "resolve", "dedup_key": dedup_key(event, environment)}))
    return found


# --- email ------------------------------------------------------------------------------------------------------------


def email(event, status, environment, details, language, links):
    """Subject, text and HTML of a mail."""
    subject = cut(one_line("[ShiftMaster] %s (%s)" % (titles(event, status, details, language), environment)), SUBJECT)
    texts, pages = [], []
    for which in languages(language):
        head = title(event, status, details, which)
        found = rows(event, status, environment, details, which)
        texts.append("%s\n\n%s\n" % (head, "\n".join("%s: %s" % (a, b.replace("\n", "\n  ")) for a, b in found)))
        cells = "".join(
            '<tr><th style="text-align:left;vertical-align:top;padding:2px 12px 2px 0">%s</th><td>%s</td></tr>'
            % (html.escape(a), html.escape(b).replace("\n", "<br>"))
            for a, b in found
        )
        pages.append("<h2>%s</h2><table>%s</table>" % (html.escape(head), cells))
    if links:
        texts.append("\n".join("%s: %s" % (one["text"], one["href"]) for one in links) + "\n")
        pages.append(
            "<p>%s</p>"
            % " | ".join('<a href="%s">%s</a>' % (html.escape(one["href"]), html.escape(one["text"])) for one in links)
        )
    lang = "ja" if 1 in languages(language) else "en"
    page = '<!DOCTYPE html><html lang="%s"><meta charset="utf-8"><body>%s</body></html>' % (lang, "".join(pages))
    return subject, "\n".join(texts), page

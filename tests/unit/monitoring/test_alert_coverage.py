"""docs/coverage.yml has no hole: each metric that the guide names has a query, a panel, and an alert or a reason."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import offenders
import yaml

ROOT = Path(__file__).resolve().parents[3]
COVERAGE = yaml.safe_load((ROOT / "docs/coverage.yml").read_text(encoding="utf-8"))
ROWS = COVERAGE["metrics"]
DASHBOARDS = ROOT / "monitoring" / "dashboards" / "ja"

# The three layers of the guide, word by word.
GUIDE = """
レスポンス時間: API・画面表示速度
スループット: 同時接続数・リクエスト処理数
エラー率: HTTP 4xx/5xx エラー発生率
可用性: サービス稼働率・ダウンタイム
ユーザーセッション: アクティブユーザー・セッション継続時間
CPU使用率: サーバー・コンテナリソース
メモリ使用量: アプリケーション・システムメモリ
ディスク使用量: ストレージ容量・I/O性能
ネットワーク: 帯域使用率・パケット損失
コンテナヘルス: Docker コンテナ稼働状況
接続数: アクティブ・アイドル接続
クエリ性能: 実行時間・スロークエリ
レプリケーション: マスター・スレーブ同期状況
ロック: デッドロック・ロック待機時間
バックアップ: 自動バックアップ成功・失敗
""".strip().splitlines()


@functools.cache
def alerts():
    found = {}
    for path in sorted((ROOT / "monitoring/rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            found.update({rule["alert"]: rule for rule in group["rules"] if "alert" in rule})
    return found


def metrics(expression):
    """Names of series in a query."""
    bare = re.sub(r"{[^}]*}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", expression)
    return {
        name
        for name in re.findall(r"[a-z][a-z0-9]*_[A-Za-z0-9_:]+|\bup\b", bare)
        if name + "(" not in bare.replace(" ", "")
    }


@functools.cache
def panels():
    """{(uid, title): [expressions]}"""
    found = {}
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        todo = list(dashboard["panels"])
        while todo:
            panel = todo.pop()
            todo += panel.get("panels") or []
            found.setdefault((dashboard["uid"], panel.get("title")), []).extend(
                target.get("expr", "") for target in panel.get("targets") or []
            )
    return found


def named(row):
    return f"{row['dashboard']}-{row['metric']}"


def test_every_metric_of_the_guide_is_covered_and_nothing_else_is_claimed():
    assert list(dict.fromkeys(row["guide"] for row in ROWS)) == GUIDE


@offenders.each(ROWS, named)
def test_row_has_no_hole(row):
    assert {"guide", "metric", "query", "dashboard", "panel"} <= set(row)
    assert all(row[key].strip() for key in ("metric", "query", "dashboard", "panel"))
    # An alert, or a reason on record; never both, never neither.
    assert bool(row.get("alerts")) != bool(row.get("no_alert"))
    assert set(row.get("alerts", [])) <= set(alerts())
    if "no_alert" in row:
        assert len(row["no_alert"].split()) > 10, "a reason"


@offenders.each(ROWS, named)
def test_panel_shows_the_metric(row):
    shown = panels()
    assert (row["dashboard"], row["panel"]) in shown
    expressions = " ".join(shown[row["dashboard"], row["panel"]])
    assert metrics(row["query"]) & metrics(expressions), f"{row['panel']} does not show {metrics(row['query'])}"


def test_alerts_that_a_reason_names_exist():
    known = set(alerts())
    for text in [row.get("no_alert", "") for row in ROWS] + [entry["reason"] for entry in COVERAGE["not_decided"]]:
        names = set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][A-Za-z]+)+\b", text)) - {"PostgreSQL"}
        assert names <= known, text


def test_undecidable_entries_have_a_reason():
    assert COVERAGE["not_decided"]
    assert [entry["what"] for entry in COVERAGE["not_decided"] if len(entry["reason"].split()) < 10] == []


def test_metrics_of_a_query_are_found():
    assert metrics('sum by (le) (rate(a_bucket{le_x="b_c"}[5m])) / up{job="x"}') == {"a_bucket", "up"}


def test_each_metric_that_this_repository_writes_is_used_or_has_a_reason():
    """Metrics in node exporter's textfiles have an alert, a panel, or an entry of not_decided."""
    written = set(
        re.findall(
            r"\bshiftmaster_(?:backup|restore_test|health_check|log_canary|logstash|filebeat|elasticsearch|container|host)_\w+",
            " ".join(
                (ROOT / path).read_text(encoding="utf-8")
                for path in (
                    "module_utils/shiftmaster/backup/manifest.py", "module_utils/shiftmaster/logging/canary.py",
                    "module_utils/shiftmaster/logging/log_watch.py", "roles/health/templates/health.prom.j2",
                    "module_utils/shiftmaster/monitoring/container_metrics.py",
                    "module_utils/shiftmaster/monitoring/host_metrics.py",
                )
            ),
        )
    )  # fmt: skip
    assert len(written) > 25
    expressions = " ".join(rule["expr"] for rule in alerts().values())
    expressions += " ".join(text for texts in panels().values() for text in texts)
    reasons = " ".join(entry["what"] for entry in COVERAGE["not_decided"])
    assert {name for name in written if not re.search(rf"\b{name}\b", expressions + reasons)} == set()

#!/usr/bin/env python3
"""Tests of the alert rules, by promtool: makes them of monitoring/cases, runs them, checks that they notice mistakes.

    tests/alert_tests.py run        promtool check rules, test rules; with names, the tests of these alerts
                                      (`recordings`: of the recording rules)
    tests/alert_tests.py mutate     changes each number, comparison, duration, range, label and matcher of each alert
                                      and recording, one by one, and names the changes that no test notices; with names
                                      as above

promtool is taken from $PROMTOOL, or from PATH. Tests of recording rules are written by hand, in monitoring/rule_tests.

A case of monitoring/cases: `fires` and `silent` are lists of
    series      {series: values in promtool's notation, one each `every` (default: the evaluation)}
    at          fires: the time of the first evaluation that is firing; the one before it must not be
                silent: any time
    until       fires: where it continues after its end, the time of the last evaluation that is firing
    labels      fires: the labels of the alert besides severity, service, depends_on and env; notify where the rule
                has a template for it
    shows       fires: what its texts show for the value: one text for all, or {template: text}
    why         silent: what is near about it
Series without the label env are given in two environments, and the alert must fire in each of them by itself;
`env: null` among the labels is an alert without that label.
`evaluation` is how often the rules are evaluated, as in Prometheus, or more coarsely where days go by.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import alerts as catalogue_of

ROOT = catalogue_of.ROOT
RULES = catalogue_of.MONITORING / "rules"
TESTS = catalogue_of.MONITORING / "rule_tests"
ENVIRONMENTS = ("production", "staging")


def promtool() -> str | None:
    return os.environ.get("PROMTOOL") or shutil.which("promtool")


# --- making ---------------------------------------------------------------------------------------------------------


def span(text: str) -> int:
    """Seconds of 1m30s."""
    return sum(int(number) * catalogue_of.UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))


def shown(template: str, labels: dict[str, str], shows: str | dict[str, str]) -> str:
    """The result of a template with the labels and the texts of the case; a label that the alert lacks is an error."""

    def replace(match: re.Match[str]) -> str:
        inner = match[1].strip()
        if inner.startswith('"'):
            return inner[1:-1].replace('\\"', '"')
        if inner.startswith("$labels."):
            return labels[inner.removeprefix("$labels.")]
        return shows[inner] if isinstance(shows, dict) else shows

    # A quoted text, as it stands for a command with braces, may hold braces itself.
    return re.sub(r'{{ ("(?:[^"\\]|\\.)*"|.*?) }}', replace, template)


def timestamp(time: str, expected: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return {"eval_time": time, "alertname": name, "exp_alerts": expected}


def tests_of(alert: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    made = catalogue_of.rule(alert)
    evaluation = case.get(
        "evaluation", f"{catalogue_of.FAST_SECONDS if alert['group'] in catalogue_of.FAST else catalogue_of.SECONDS}s"
    )
    name = alert["name"]
    groups = []
    for number, fires in enumerate(case["fires"], 1):
        wanted = fires["labels"] if isinstance(fires["labels"], list) else [fires["labels"]]
        expected = [
            {
                "exp_labels": {**made["labels"], **labels},
                "exp_annotations": {
                    key: shown(text, labels, fires.get("shows", "")) for key, text in made["annotations"].items()
                },
            }
            for given in wanted
            for labels in labels_by_environment(given)
        ]
        checks = [timestamp(fires["at"], expected, name)]
        if "for" in made:
            checks.insert(0, timestamp(f"{span(fires['at']) - span(evaluation)}s", [], name))
        if "until" in fires:
            after = f"{span(fires['until']) + span(evaluation)}s"
            checks += [timestamp(fires["until"], expected, name), timestamp(after, [], name)]
        groups.append({"name": f"fires {number}", **inputs(fires, case, evaluation), "alert_rule_test": checks})
    for silent in case["silent"]:
        groups.append(
            {
                "name": f"silent: {silent['why']}",
                **inputs(silent, case, evaluation),
                "alert_rule_test": [timestamp(silent["at"], [], name)],
            }
        )
    if "on (env" in made["expr"]:
        groups += apart(groups, case, evaluation, name)
    return {"rule_files": rule_files(alert), "evaluation_interval": evaluation, "tests": groups}


def apart(groups: list[dict[str, Any]], case: dict[str, Any], evaluation: str, name: str) -> Iterator[dict[str, Any]]:
    """Alerts that fire in one environment and not in the other one, where both are the same so far."""
    given = [*case["fires"], *case["silent"]]
    plain = [
        (one, group)
        for one, group in zip(given, groups)
        if not any(re.search(r"\benv=", series) for series in one["series"])
    ]
    for fires, group in (pair for pair in plain if "labels" in pair[0] and "env" not in str(pair[0]["labels"])):
        for silent, _ in (pair for pair in plain if "why" in pair[0]):
            if fires.get("every") == silent.get("every") and span(silent["at"]) >= span(fires["at"]):
                both = [(ENVIRONMENTS[0], fires), (ENVIRONMENTS[1], silent)]
                series = {
                    one: values
                    for env, source in both
                    for series_name, values in source["series"].items()
                    for one in series_by_environment(series_name, (env,))
                }
                first = group["alert_rule_test"][-1 if "until" not in fires else -3]
                expected = [one for one in first["exp_alerts"] if one["exp_labels"].get("env") == ENVIRONMENTS[0]]
                yield {
                    "name": f"{group['name']} in one environment, in the other one {silent['why']}",
                    **inputs({**fires, "series": series}, case, evaluation),
                    "alert_rule_test": [timestamp(fires["at"], expected, name)],
                }


def labels_by_environment(labels: dict[str, str | None]) -> list[dict[str, str]]:
    if "env" not in labels:
        return [{**labels, "env": env} for env in ENVIRONMENTS]
    return [{name: value for name, value in labels.items() if value is not None}]


def series_by_environment(name: str, environments: tuple[str, ...] = ENVIRONMENTS) -> list[str]:
    if re.search(r"\benv=", name):
        return [name]
    metric, _, labels = name.partition("{")
    return [f'{metric}{{env="{env}",{labels or "}"}' for env in environments]


def inputs(given: dict[str, Any], case: dict[str, Any], evaluation: str) -> dict[str, Any]:
    every = given.get("every") or case.get("every") or evaluation
    return {
        "interval": every,
        "input_series": [
            {"series": one, "values": str(values)}
            for name, values in given["series"].items()
            for one in series_by_environment(name)
        ],
    }


def rule_files(alert: dict[str, Any]) -> list[str]:
    return [str(RULES / ("shiftmaster.yml" if alert["group"] == "shiftmaster.alerts" else alert["source"]))]


@functools.cache
def cases() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((catalogue_of.MONITORING / "cases").glob("*.yml")):
        found.update(catalogue_of.load(path))
    return found


def chosen(names: list[str]) -> list[dict[str, Any]]:
    return [alert for alert in catalogue_of.catalogue() if not names or alert["name"] in names]


# --- running --------------------------------------------------------------------------------------------------------


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(promtool()), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def run(names: list[str]) -> int:
    known = cases()
    with tempfile.TemporaryDirectory() as name:
        tests = sorted(TESTS.glob("*.yml")) if not names or "recordings" in names else []
        for alert in chosen(names):
            tests.append(Path(name) / f"{alert['name']}.yml")
            tests[-1].write_text(dumped(tests_of(alert, known[alert["name"]])), encoding="utf-8")
        checked = call("check", "rules", "--lint=all", "--lint-fatal", *sorted(RULES.glob("*.yml")))
        tested = call("test", "rules", *tests)
    for done in (checked, tested):
        print(done.stdout + done.stderr, end="")
    return checked.returncode or tested.returncode


# --- mutants --------------------------------------------------------------------------------------------------------

# Within braces and strings: the value of a label.
MATCHERS = re.compile(r'(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"')
COMPARISONS = {">": (">=", "<"), "<": ("<=", ">"), ">=": (">", "<"), "<=": ("<", ">"), "==": ("!=",), "!=": ("==",)}
# The labels by which series are put together or find one another.
GROUPING = re.compile(r"\b(by|without|on|ignoring) \(([^)]*)\)")
# Parts of an expression without a number: strings, durations, names.
TOKENS = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*")|(?P<matcher>{[^}]*})|(?P<range>\[[^\]]*\])|(?P<offset>\boffset \w+)'
    r"|(?P<name>[A-Za-z_][\w:]*)|(?P<number>\d+(?:\.\d+)?)|(?P<comparison>[=!<>]=|[<>])"
)


def changed_numbers(text: str) -> tuple[str, ...]:
    """A tenth more and less; 0 and 1 are mostly states and counts, so the next ones."""
    value = float(text)
    if value in (0, 1):
        return (str(int(value) + 1), str(int(value) - 1))
    return (f"{value * 1.1:.10g}", f"{value * 0.9:.10g}")


def changed_duration(text: str) -> tuple[str, ...]:
    seconds = span(text)
    return (f"{seconds * 2}s", f"{seconds // 2}s")


def changed_groupings(expr: str) -> Iterator[tuple[str, str]]:
    """Each label removed; where there is none, an unknown one changes nothing."""
    for match in GROUPING.finditer(expr):
        labels = [label.strip() for label in match[2].split(",") if label.strip()]
        for label in labels:
            left = ", ".join(one for one in labels if one != label)
            what = f"{match[1]} ({match[2]}) [{label} → nothing]"
            yield what, expr[: match.start()] + f"{match[1]} ({left})" + expr[match.end() :]


def changed_expressions(name: str, expr: str) -> Iterator[tuple[str, str]]:
    """(what was changed, the expression with it)"""
    seen = set()
    yield from changed_groupings(expr)
    for match in TOKENS.finditer(expr):
        kind, text = match.lastgroup, match[0]
        if kind in ("range", "offset"):
            for other in changed_duration(text):
                changed = f"[{other}]" if kind == "range" else f"offset {other}"
                before = expr[max(0, match.start() - 40) : match.start()].replace("\n", " ")
                yield (
                    f"…{before}[{text.strip('[]')} → {changed.strip('[]')}]",
                    expr[: match.start()] + changed + expr[match.end() :],
                )
        others = changed_numbers(text) if kind == "number" else COMPARISONS[text] if kind == "comparison" else ()
        for other in others:
            where = expr[max(0, match.start() - 30) : match.start()].split("\n")[-1]
            yield f"…{where}[{text} → {other}]", expr[: match.start()] + other + expr[match.end() :]
        for inner in MATCHERS.finditer(text) if kind == "matcher" else ():
            start, end = match.start() + inner.start(2), match.start() + inner.end(2)
            changed = expr[:start] + "other" + expr[end:]
            if inner[1].startswith("!"):
                # Labels missing on one side of a division are missing on both: only all of them together count.
                changed = expr.replace(inner[0], f'{inner[1]}"other"')
            if changed not in seen:
                seen.add(changed)
                yield f"{text} [{inner[2]} → other]", changed


def mutants(alert: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what was changed, the alert's rule with it)"""
    original = catalogue_of.rule(alert)
    for what, expr in changed_expressions(alert["name"], original["expr"]):
        yield what, {**original, "expr": expr}
    step = catalogue_of.FAST_SECONDS if alert["group"] in catalogue_of.FAST else catalogue_of.SECONDS
    step = span(cases()[alert["name"]].get("evaluation", f"{step}s"))
    duration = catalogue_of.seconds(alert["for"])
    # One evaluation is the least that can be seen.
    for other in (duration + step, duration - step):
        if other >= 0:
            yield f"for [{alert['for']} → {other}s]", {**original, "for": f"{other}s"}
    if "keep_firing_for" in original:
        lasts = catalogue_of.seconds(original["keep_firing_for"])
        for other in (lasts + step, lasts - step):
            yield f"keep_firing_for [{lasts}s → {other}s]", {**original, "keep_firing_for": f"{other}s"}
    for label, value in original["labels"].items():
        yield f"label {label} [{value} → other]", {**original, "labels": {**original["labels"], label: "other"}}


def recorded_mutants() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(what was changed, the record that it was changed of, all recording rules with it)"""
    content = yaml.safe_load((RULES / "recordings.yml").read_text(encoding="utf-8"))
    for place, group in enumerate(content["groups"]):
        for number, rule in enumerate(group["rules"]):
            changed = [
                (what, {**rule, "expr": expr}) for what, expr in changed_expressions(rule["record"], rule["expr"])
            ]
            for label in rule.get("labels", {}):
                changed.append((f"label {label}", {**rule, "labels": {**rule["labels"], label: "other"}}))
            for what, other in changed:
                rules = [*group["rules"][:number], other, *group["rules"][number + 1 :]]
                groups = [*content["groups"][:place], {**group, "rules": rules}, *content["groups"][place + 1 :]]
                yield f"{rule['record']}: {what}", rule["record"], {"groups": groups}


def names_in(text: str) -> set[str]:
    """Every word that could be a metric's name, also one that is given as __name__."""
    return set(re.findall(r"[A-Za-z_:][\w:]*", text))


def part_for(record: str, rules: dict[str, Any], test: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(rules, test) without what cannot meet this record, whose rule has changed: nothing else can fail.

    Kept are the expectations that name the record or one that depends on it, the rules that these depend on, and the
    series that are named there.
    """
    needs: dict[str, set[str]] = {}
    for group in rules["groups"]:
        for rule in group["rules"]:
            needs.setdefault(rule["record"], set()).update(names_in(rule["expr"]))

    def closure(names: set[str], follow: dict[str, set[str]]) -> set[str]:
        found, todo = set(), list(names)
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += follow.get(name, ())
        return found

    dependents: dict[str, set[str]] = {}
    for name, used in needs.items():
        for one in used:
            dependents.setdefault(one, set()).add(name)
    met = closure({record}, dependents)
    tests = []
    for one in test["tests"]:
        requested = [case for case in one["promql_expr_test"] if names_in(case["expr"]) & met]
        if requested:
            tests.append({**one, "promql_expr_test": requested})
    expected = [case["expr"] for one in tests for case in one["promql_expr_test"]]
    named = closure(set().union(*map(names_in, expected)), needs)
    tests = [
        {**one, "input_series": [series for series in one["input_series"] if series["series"].split("{")[0] in named]}
        for one in tests
    ]
    groups = [
        {**group, "rules": [rule for rule in group["rules"] if rule["record"] in named]} for group in rules["groups"]
    ]
    return {"groups": [group for group in groups if group["rules"]]}, {**test, "tests": tests}


# Tests of one call of promtool, of which each processor has one at a time: what takes time is its start.
AT_ONCE = 50


def failed_tests(tests: list[Path]) -> set[str]:
    """The stems of those that fail."""

    def failed(part: list[Path]) -> set[str]:
        # Failures are reported on another channel.
        output = call("test", "rules", *part).stdout
        results = re.findall(r"^Unit Testing: +(?:.*/)?([^/\s]+)\.yml$(\s+SUCCESS)?", output, re.M)
        if [stem for stem, _ in results] != [path.stem for path in part]:
            raise RuntimeError(f"promtool did not run all of them: {output[-2000:]}")
        return {stem for stem, success in results if not success}

    parts = [tests[start : start + AT_ONCE] for start in range(0, len(tests), AT_ONCE)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return set().union(*pool.map(failed, parts))


def survivors(names: list[str]) -> tuple[int, list[str]]:
    """(number of mutants, those that no test noticed) of these alerts; `recordings` are the recording rules"""
    known = cases()
    # mutant: what was changed; and its tests, the fast ones first.
    described: dict[str, str] = {}
    tests: dict[str, list[Path]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)

        def install(stem: str, what: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
            described[stem], tests[stem] = what, []
            for number, (rules, test) in enumerate(pairs):
                own = f"{stem}-{number}"
                (directory / f"{own}.rules").write_text(dumped(rules), encoding="utf-8")
                if test["tests"]:
                    tests[stem].append(directory / f"{own}.yml")
                    tests[stem][-1].write_text(dumped({**test, "rule_files": [f"{own}.rules"]}), encoding="utf-8")

        for alert in chosen(names):
            test = tests_of(alert, known[alert["name"]])
            for number, (what, rule) in enumerate(mutants(alert)):
                rules = {"groups": [{"name": alert["group"], "rules": [rule]}]}
                install(f"{alert['name']}-{number:03}", f"{alert['name']}: {what}", [(rules, test)])
        if not names or "recordings" in names:
            own = [loaded(path) for path in sorted(TESTS.glob("*.yml"))]
            for number, (what, record, rules) in enumerate(recorded_mutants()):
                install(f"recordings-{number:03}", what, [part_for(record, rules, test) for test in own])
        # An invalid rule would be rejected, not detected.
        checked = call("check", "rules", *sorted(directory.glob("*.rules")))
        if checked.returncode:
            raise RuntimeError(f"a mutant is no rule: {checked.stdout[-2000:]}{checked.stderr[-2000:]}")
        left = sorted(described)
        for number in range(max(map(len, tests.values()), default=0)):
            # A mutant that one test has detected is not given to the next one.
            failed = failed_tests([tests[stem][number] for stem in left if number < len(tests[stem])])
            left = [stem for stem in left if number >= len(tests[stem]) or tests[stem][number].stem not in failed]
    return len(described), [described[stem] for stem in left]


def loaded(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def dumped(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), allow_unicode=True)


def main() -> int:
    words = sys.argv[1:]
    if words[:1] not in (["run"], ["mutate"]):
        print(__doc__, file=sys.stderr)
        return 2
    if promtool() is None:
        print("promtool is neither in $PROMTOOL nor on PATH.", file=sys.stderr)
        return 2
    if words[0] == "run":
        return run(words[1:])
    number, left = survivors(words[1:])
    print("\n".join(left + [f"{number} mutants, {len(left)} survived"]))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

"""The documents are correct: commands, options, variables, defaults, paths and lists are those of the code."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
READMES = [ROOT / "README.md", ROOT / "README.ja.md"]
# The operations guide: its index stands for all of its chapters in a language.
GUIDES = [ROOT / "docs/guide/README.md", ROOT / "docs/guide/README.ja.md"]
CHAPTERS = {
    path: sorted(path.parent.glob("[0-9][0-9]-*.ja.md" if path.name == "README.ja.md" else "[0-9][0-9]-*[!a].md"))
    for path in GUIDES
}
CONFIGURATION = [ROOT / "docs/configuration.md", ROOT / "docs/configuration.ja.md"]
PAIRS = [READMES, CONFIGURATION, GUIDES]
DOCUMENTS = READMES + CONFIGURATION + GUIDES
# Options of ansible-playbook that take a value.
VALUED = {"-i": "inventory", "--inventory": "inventory", "-e": "extra", "--tags": "tags"}
PLAIN = {"--check", "--diff", "--ask-vault-pass", "--ask-become-pass"}
# Begin like a variable and are something else: modules, packages, files.
MODULES = [*ROOT.glob("library/*/*.py"), *ROOT.glob("plugins/action/*.py")]
NO_VARIABLES = {path.stem for path in MODULES} | {"shiftmaster_monitoring", "shiftmaster_class"}


def name_of(path):
    return str(path.relative_to(ROOT))


@functools.cache
def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@functools.cache
def text_of(path):
    """A document; of the index of the guide also all of its chapters."""
    return "\n".join(one.read_text(encoding="utf-8") for one in [path, *CHAPTERS.get(path, [])])


@functools.cache
def blocks(path):
    """[(language, text)] of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text_of(path), re.M | re.S)


@functools.cache
def prose(path):
    return re.sub(r"^```.*?^```$", "", text_of(path), flags=re.M | re.S)


def spans(path):
    """The texts in backticks, outside of blocks."""
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", prose(path))]


def rows(path):
    """[(heading, [cells])] of every row of every table; the heading is its first row."""
    found, heading = [], None
    for line in prose(path).splitlines():
        if not line.startswith("|"):
            heading = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if set(line) <= set("|-: "):
            continue
        if heading is None:
            heading = cells
        else:
            found.append((heading, cells))
    return found


def commands(path):
    """Every command line of the document, from blocks and from backticks."""
    lines = [line for language, text in blocks(path) if not language for line in text.splitlines()]
    return [line.split(" #")[0].strip() for line in lines + spans(path)]


@functools.cache
def defaults():
    """{variable: default with the group variables}, without the environments' own values."""
    found = {}
    for role in ROLES:
        path = ROOT / "roles" / role / "defaults/main.yml"
        found.update(load(path) if path.exists() else {})
    for path in sorted((ROOT / "group_vars/all").glob("*.yml")):
        found.update(load(path) or {})
    return found


@functools.cache
def variables():
    """Every name that a site may set: options of roles, those of the group variables, and the secrets."""
    found = set(defaults())
    for role in ROLES:
        specs = load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]
        for spec in specs.values():
            found |= set(spec.get("options") or {})
    found |= set(load(ROOT / "group_vars/single/vars.yml")) | set(load(ROOT / "group_vars/single/vault.yml.example"))
    found |= set(load(ROOT / "group_vars/awx/settings.yml"))
    return found


def targets():
    return set(re.findall(r"^([a-z][a-z-]*|[a-z]+-%):", (ROOT / "Makefile").read_text(), re.M))


@functools.cache
def playbook_text(path):
    """A playbook with what it imports."""
    text = path.read_text(encoding="utf-8")
    for other in re.findall(r"import_playbook: (\S+)", text):
        text += playbook_text(path.parent / other)
    return text


def documented_options(playbook):
    """Options that group_vars/all/options.yml allows with this playbook."""
    return load(ROOT / "group_vars/all/options.yml")["run_options"].get(Path(playbook).stem, {})


def playbook_faults(words):
    """Problems of one call of ansible-playbook."""
    named, requirements, faults = [], [], []
    iterator = iter(words[1:])
    for word in iterator:
        if word in VALUED:
            requirements.append((VALUED[word], next(iterator, "")))
        elif word in PLAIN:
            continue
        elif word.startswith("-"):
            faults.append(f"option {word} is not known here")
        else:
            named.append(word)
    for playbook in named:
        if not (ROOT / playbook).is_file():
            faults.append(f"there is no playbook {playbook}")
    if faults or not named:
        return faults or (["no playbook is named"] if requirements else [])
    text = "".join(playbook_text(ROOT / playbook) for playbook in named)
    for kind, value in requirements:
        if kind == "inventory" and not (ROOT / value).exists():
            faults.append(f"there is no inventory {value}")
        elif kind == "tags":
            known = {tag for line in re.findall(r"tags: \[(.*?)\]", text) for tag in line.split(", ")}
            faults += [f"there is no tag {tag}" for tag in value.split(",") if tag not in known]
        elif kind == "extra":
            name = value.split("=")[0]
            typed = {option for playbook in named for option in documented_options(playbook)}
            if not re.search(rf"\b{name} \| default|^    {name}: ", text, re.M) and name not in variables() | typed:
                faults.append(f"there is no option {name}")
    return faults


def test_every_document_is_there_in_both_languages():
    assert [name_of(path) for path in DOCUMENTS if not path.exists()] == []


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_make_targets_exist(path):
    texts = [text for _, text in blocks(path)] + spans(path)
    named = {name for text in texts for name in re.findall(r"(?:^|[>;&] ?)make ([a-z][a-z-]*)", text, re.M)}
    assert named
    # `make scenario-<name>` and `make scenario-base` are both of the pattern.
    assert {
        name for name in named if name not in targets() and re.sub(r"-[a-z]*$", "-%", name) not in targets()
    } == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_calls_of_ansible_playbook_are_right(path):
    calls = [command for command in commands(path) if command.startswith("ansible-playbook")]
    assert len(calls) > 3
    assert {call: faults for call in calls if (faults := playbook_faults(shlex.split(call)))} == {}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_playbooks_with_tags_in_the_text_are_right(path):
    calls = [command for command in commands(path) if re.match(r"\S+\.yml --", command)]
    assert {call: faults for call in calls if (faults := playbook_faults(["", *shlex.split(call)]))} == {}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_calls_of_modules_and_their_documentation_are_right(path):
    for command in commands(path):
        words = shlex.split(command) if command.startswith(("ansible ", "ansible-doc ")) else []
        if "-m" in words:
            assert list(ROOT.glob(f"library/*/{words[words.index('-m') + 1]}.py")), command
            assert words[1] in load(ROOT / "inventory/single/hosts.yml")["all"]["children"], command
        elif words[:1] == ["ansible-doc"]:
            assert words[1:3] == ["-M", "library"] and list(ROOT.glob(f"library/*/{words[3]}.py")), command


@pytest.mark.parametrize("path", CONFIGURATION + GUIDES, ids=name_of)
def test_vaults_that_are_named_have_their_example(path):
    named = {
        shlex.split(command.removesuffix("&&"))[-1]
        for command in commands(path)
        if command.startswith("ansible-vault ")
    }
    assert named and [name for name in named if not (ROOT / f"{name}.example").exists()] == []


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_quick_start_is_two_commands_and_the_second_is_what_ci_calls(path):
    first = blocks(path)[0][1].split("\n")[:-1]
    assert len(first) == 2
    assert first[0] == "make demo"
    script = (ROOT / ".ci/run").read_text().replace('"${@:-test}"', "test")
    called = [line for line in script.splitlines() if re.match(r"make\b", line)]
    assert [" ".join(word for word in line.split() if not word.startswith("--")) for line in called] == [first[1]]


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_guide_names_every_playbook(path):
    text = text_of(path)
    playbooks = sorted((ROOT / "playbooks").glob("*.yml"))
    assert [playbook.name for playbook in playbooks if playbook.name not in text] == []


def test_shiftmasterctl_commands_exist():
    output = {command for path in DOCUMENTS for command in commands(path) if re.match(r"shiftmasterctl \w", command)}
    known = re.search(r"commands = ({.*?})", (ROOT / "roles/shiftmaster/files/shiftmasterctl").read_text(), re.S)[1]
    assert output and {command for command in output if f'"{command.split()[1]}"' not in known} == set()


# --- variables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_variables_exist(path):
    prefixed = re.compile(rf"^(?:{'|'.join(ROLES)}|vault|health)_[a-z0-9_]+$")
    named = {span.split(":")[0].split("=")[0] for span in spans(path)}
    for language, text in blocks(path):
        if language == "yaml":
            named |= set(yaml.safe_load(text))
    named = {name for name in named if prefixed.match(name)} - NO_VARIABLES
    known = variables()
    known |= {check["name"] for entries in defaults()["shiftmaster_health_checks"].values() for check in entries}
    assert named or path in READMES
    # The changelog names options that have a new name, too.
    assert named - known == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_yaml_blocks_have_the_right_types(path):
    """An example must be valid for its role."""
    options = {}
    for role in ROLES:
        specs = load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]
        options.update(next(iter(specs.values()))["options"])
    kinds = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict, "float": (int, float)}
    for language, text in blocks(path):
        for name, value in (yaml.safe_load(text) if language == "yaml" else {}).items():
            if name in options:
                assert isinstance(value, kinds[options[name]["type"]]), name
                for element in value if options[name].get("elements") == "dict" else []:
                    assert isinstance(element, dict), name
    if path in GUIDES:
        assert [language for language, _ in blocks(path)].count("yaml") >= 4


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_defaults_in_tables_are_the_codes(path):
    real, seen, wrong = defaults(), 0, {}
    for heading, cells in rows(path):
        if heading[1] not in ("default", "既定値"):
            continue
        names = re.findall(r"`([^`]+)`", cells[0])
        values = [yaml.safe_load(value) for value in re.findall(r"`([^`]+)`", cells[1])]
        assert len(values) in (1, len(names)), cells
        for name, value in zip(names, values * len(names) if len(values) == 1 else values):
            seen += 1
            if real[name] != value or isinstance(real[name], bool) != isinstance(value, bool):
                wrong[name] = (value, real[name])
    assert seen > 20
    assert wrong == {}


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_defaults_in_brackets_are_the_codes(path):
    """`variable` (60), also with Japanese brackets."""
    real = defaults()
    output = re.findall(r"`([a-z0-9_]+)`[ ,、]*[((]?(\d+)(?: s| 秒)?[,)),]", prose(path))
    output = [(name, int(number)) for name, number in output if name in real]
    assert len(output) >= 5
    assert [(name, number, real[name]) for name, number in output if real[name] != number] == []


@pytest.mark.parametrize("path", CONFIGURATION, ids=name_of)
def test_the_configuration_names_everything_that_must_be_set(path):
    group_variables = load(ROOT / "group_vars/all/preflight.yml")
    lists = [group_variables[name] for name in group_variables if name.startswith("__preflight_required")]
    required = {entry["name"] for entries in lists for entry in entries}
    vault = set(load(ROOT / "group_vars/single/vault.yml.example"))
    assert required | vault <= set(spans(path))


# --- lists ----------------------------------------------------------------------------------------------------------


def first_column(path, *headings):
    """The backticked texts of the first column of the tables with one of these headings."""
    found = [cells[0] for heading, cells in rows(path) if heading[0] in headings]
    return [span for cell in found for span in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_checks_are_those_of_the_group_variables(path):
    checks = load(ROOT / "group_vars/all/health.yml")["shiftmaster_health_checks"]
    group_of = {check["name"]: group for group, entries in checks.items() for check in entries}
    output = {}
    for heading, cells in rows(path):
        if heading[0] in ("check", "チェック"):
            group = (re.findall(r"`([^`]+)`", cells[1]) or ["all"])[0]
            output.update((name, group) for name in re.findall(r"`([^`]+)`", cells[0]))
    assert output == group_of


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_statuses_and_icons_are_the_engines(path):
    source = (ROOT / "module_utils/shiftmaster/health/engine.py").read_text(encoding="utf-8")
    icons = ast.literal_eval(re.search(r"^ICONS = ({.*})$", source, re.M)[1])
    icons["error"] = ast.literal_eval(re.search(r"^UNKNOWN_ICON = (.*)$", source, re.M)[1])
    output = {cells[0].split("(")[0]: cells[1] for heading, cells in rows(path) if heading[1] in ("icon", "アイコン")}
    assert output == icons


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_phases_of_the_cutover_are_the_engines(path):
    source = (ROOT / "module_utils/shiftmaster/release/cutover.py").read_text(encoding="utf-8")
    phases = list(ast.literal_eval(re.search(r"^PHASES = (\(.*\))$", source, re.M)[1]))
    tables = [cells[0] for heading, cells in rows(path) if heading[-1] in ("when it fails", "失敗すると")]
    assert [name for cell in tables for name in re.findall(r"`([^`]+)`", cell)] == phases[:-1]
    # The text describes the rollback.
    assert phases[-1] == "revert" and "revert" in spans(path)


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_hook_phases_are_the_modules(path):
    source = (ROOT / "library/release/shiftmaster_release.py").read_text(encoding="utf-8")
    choices = re.search(r"choices: \[(after_build[^]]*)\]", source)[1].split(", ")
    tables = [
        cells[0] for heading, cells in rows(path) if len(heading) == 3 and heading[2] in ("as whom", "実行ユーザー")
    ]
    assert [span for cell in tables for span in re.findall(r"`([^`]+)`", cell)] == choices


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_states_of_a_release_are_the_codes(path):
    source = (ROOT / "module_utils/shiftmaster/release/state.py").read_text(encoding="utf-8")
    statuses = ast.literal_eval(re.search(r"^STATUSES = (\(.*\))$", source, re.M)[1])
    assert first_column(path, "state of a release", "リリースの状態") == list(statuses)


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_choices_of_schema_are_the_playbooks(path):
    choices = load(ROOT / "group_vars/all/options.yml")["run_options"]["rollback"]["schema"]["choices"]
    output = {found for span in spans(path) for found in re.findall(r"^schema=(\w+)$", span)}
    output |= set(first_column(path, "`schema`"))
    assert output == set(choices)


def test_pages_are_named_as_users_see_them():
    pages = load(ROOT / "roles/nginx/vars/main.yml")["__nginx_pages"]
    for path, language in zip(GUIDES, ("en", "ja")):
        titles = {page["code"]: page[language] for page in pages}
        named = re.findall(r'["「]([^"」\n]+)["」][^|\n]*[((](\d{3})[))]', prose(path))
        assert len(named) == 3
        assert [(title, code) for title, code in named if titles[code] != title] == []


# --- paths and links ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=name_of)
def test_paths_of_the_repository_exist(path):
    tops = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")} | {".ci"}
    named = {span for span in spans(path) if re.fullmatch(r"[\w./-]+", span) and span.split("/")[0] in tops}
    assert named and [name for name in named if not (ROOT / name).exists()] == []


def anchors(path):
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_no_link_is_dead():
    """All documents, the generated ones included: the file is there, and so is its heading."""
    found = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    dead = []
    for path in [ROOT / name for name in found.stdout.splitlines() if (ROOT / name).exists()]:
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
            name, _, anchor = target.partition("#")
            other = (path.parent / name) if name else path
            if "://" not in target and (not other.exists() or (anchor and anchor not in anchors(other))):
                dead.append(f"{name_of(path)}: {target}")
    assert dead == []


def test_chapters_of_the_guide_are_short_in_both_languages_and_in_the_index():
    english, japanese = (CHAPTERS[path] for path in GUIDES)
    assert english and [path.name.replace(".md", ".ja.md") for path in english] == [path.name for path in japanese]
    for index in GUIDES:
        listed = set(re.findall(r"\]\(([0-9]{2}-[\w.-]+)\)", index.read_text(encoding="utf-8")))
        assert listed == {path.name for path in CHAPTERS[index]}
    texts = {path.name: path.read_text(encoding="utf-8") for path in [*english, *japanese, *GUIDES]}
    assert [name for name, text in texts.items() if text.count("\n") > 200] == []


def test_chapters_that_are_named_are_links_to_them():
    wrong = []
    for path in [*GUIDES, *CHAPTERS[GUIDES[0]], *CHAPTERS[GUIDES[1]]]:
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        named = re.findall(r"(?:chapter (\d+)|(?<![\d-])(\d+) 章)(?:\]\((\d+)-)?", text)
        wrong += [(path.name, one) for one in named if int(one[0] or one[1]) != int(one[2] or 0)]
    assert wrong == []


# --- the two languages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("english, japanese", PAIRS, ids=["README", "configuration", "guide"])
def test_both_languages_have_the_same_headings(english, japanese):
    def shape(path):
        return [(len(marks), number) for marks, number in re.findall(r"^(#+) (\d*)", prose(path), re.M)]

    assert shape(english) == shape(japanese)


@pytest.mark.parametrize("english, japanese", PAIRS, ids=["README", "configuration", "guide"])
def test_both_languages_have_the_same_code(english, japanese):
    def code(path):
        return [(language, re.sub(r" +# .*$", "", text, flags=re.M)) for language, text in blocks(path)]

    assert code(english) == code(japanese)


@pytest.mark.parametrize("english, japanese", PAIRS, ids=["README", "configuration", "guide"])
def test_both_languages_name_the_same_things_in_their_tables(english, japanese):
    def table(path):
        return [[sorted(re.findall(r"`[^`]+`", cell)) for cell in cells] for _, cells in rows(path)]

    assert table(english) == table(japanese)


@pytest.mark.parametrize("english, japanese", PAIRS, ids=["README", "configuration", "guide"])
def test_both_languages_name_the_same_things_in_their_text(english, japanese):
    assert set(spans(english)) == set(spans(japanese))


@pytest.mark.parametrize("english, japanese", PAIRS, ids=["README", "configuration", "guide"])
def test_both_languages_link_to_the_same_places(english, japanese):
    def links(path):
        found = re.findall(r"\]\(([^)#\s]+)", prose(path))
        return {re.sub(r"(\.ja)?\.md$|-(ja|en)\.png$", "", target) for target in found}

    assert links(english) == links(japanese)


# --- changelog ------------------------------------------------------------------------------------------------------


def test_changelog_is_in_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.split(r"^## (?=\[)", text, flags=re.M)[1:]
    assert all(re.match(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d\n", section) for section in released) and released
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"}
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= kinds
    entries = re.findall(r"^- (.*(?:\n(?!\n|- |#).+)*)", text, re.M)
    assert entries and [entry for entry in entries if not re.fullmatch(r"\*\*.+?\*\*: .+", entry)] == []


# --- words ----------------------------------------------------------------------------------------------------------

# A line, heading, list entry or table cell begins here, or a sentence after another one.
BEGINNING = r"(?:^(?:[ >]|[-*+] |\d+\. |#+ (?:\d+\. )?)*|\| *|[.!?:][*_\")]* +)[*_\"(\[]*"
NO_SUBJECT = re.compile(BEGINNING + r"((?:Who(?:m|se|ever)?|What(?:ever)?|Of|By its)\b.*)", re.M)
# Single words that have been replaced are in .config/codespell.txt; these are of several words. Phrase: what to write.
REPLACED = {
    r"ways? back": "rollback",
    r"put(?:s|ting)?(?: \w+){0,4} back|put[-]backs?": "roll back, restore, add again",
    r"set(?:s|ting)?(?: \w+){0,3} aside": "quarantine",
    r"dead runs?": "interrupted run",
    r"la(?:y|ys|id|ying)(?: \w+)? down": "install",
    r"stand[-]ins?": "stub, fake",
    r"safety cop(?:y|ies)": "pre-migration dump",
    r"(?:tells?|telling) of|told": "report, notify",
}
PHRASES = {re.compile(rf"\b(?:{phrase})\b".replace(" ", r"\s+"), re.I): instead for phrase, instead in REPLACED.items()}


def wording_faults(text):
    """[(line, problem)] of a document: sentences that begin with no subject, and replaced phrases."""
    # Code is no prose. Lines keep their numbers.
    text = re.sub(r"^ *```.*?^ *```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)
    text = re.sub(r"`[^`\n]+`", "`-`", text)
    found = [(match.start(1), f"begins with no subject: {match[1][:60]}") for match in NO_SUBJECT.finditer(text)]
    for phrase, instead in PHRASES.items():
        found += [(match.start(), f"{' '.join(match[0].split())}: write {instead}") for match in phrase.finditer(text)]
    return [(text.count("\n", 0, start) + 1, problem) for start, problem in sorted(found)]


def test_sentences_name_their_subject_and_use_the_terms_of_the_field():
    command = ["git", "ls-files", "*.md", ":!*.ja.md"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [ROOT / name for name in names if (ROOT / name).exists()]
    assert ROOT / "docs/guide/README.md" in paths
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in paths}
    assert [f"{name}:{line}: {problem}" for name in texts for line, problem in wording_faults(texts[name])] == []


def test_a_sentence_without_a_subject_or_with_a_replaced_phrase_is_found():
    texts = [
        "What stays: nothing.",
        "It ends. What stays is there.",
        "It ends.\nWhoever reads it",
        "- Of two, the second",
        "1. By its name",
        "| `a` | **Who may read.** |",
        "## 3. What it costs",
        "There is no way\nback.",
        "It puts the old file back.",
        "A stand-in is used.",  # codespell:ignore
    ]
    assert [text for text in texts if len(wording_faults(text)) != 1] == []


def test_other_sentences_are_not_found():
    texts = [
        "It shows what stays, and who reads it.",
        "A run prints `Nothing was changed. What is wrong:`.",
        "```\nWhat is wrong:\n```",
        "A rule of the WHO goes back and forth, and is set in a file of its own.",
    ]
    assert [text for text in texts if wording_faults(text)] == []


def test_shell_in_the_documents_is_shell():
    for path in DOCUMENTS:
        for language, text in blocks(path):
            # A report is no shell.
            if not language and not text.startswith("==="):
                done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
                assert done.returncode == 0, f"{name_of(path)}: {done.stderr}"


def test_a_japanese_sentence_is_not_divided_by_a_line_break():
    """Browsers show a line break inside of a paragraph as a space."""
    japanese, block = re.compile("[ぁ-ヿ一-龥]"), re.compile(r"\s*([-*|#><]|\d+\.)")
    found = []
    for path in [*ROOT.glob("*.ja.md"), *ROOT.glob("docs/**/*.ja.md")]:
        lines = re.sub(r"(?ms)^```.*?^```$", "", path.read_text(encoding="utf-8")).splitlines()
        found += [
            f"{name_of(path)}: {below}"
            for above, below in zip(lines, lines[1:], strict=False)
            if japanese.search(above) and japanese.search(below) and not block.match(below) and above[:1] not in "|#<"
        ]
    assert found == []


def test_the_vault_is_encrypted_with_a_new_password_by_the_commands_of_both_guides(tmp_path):
    # One block in each of them, and the same one.
    (commands, again) = [text for guide in GUIDES for _, text in blocks(guide) if "--new-vault-password-file" in text]
    assert commands == again
    password, vault = tmp_path / ".shiftmaster.vault-password", tmp_path / "group_vars/single/vault.yml"
    password.write_text("former\n")
    vault.parent.mkdir(parents=True)
    vault.write_text("vault_x: secret\n")
    bin_dir = Path(sys.executable).parent
    environment = {"HOME": str(tmp_path), "PATH": f"{bin_dir}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}

    def run(text):
        # As they are typed: one that fails ends nothing.
        words = ["bash", "-uc", text]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    assert run(f"ansible-vault encrypt --vault-password-file {password} {vault}").returncode == 0
    former = tmp_path / "former"
    former.write_text("former\n")
    done = run(commands)
    assert done.returncode == 0, done.stderr
    assert "secret" in run(f"ansible-vault view --vault-password-file {password} {vault}").stdout
    assert run(f"ansible-vault view --vault-password-file {former} {vault}").returncode != 0
    assert password.stat().st_mode & 0o777 == 0o600 and len(password.read_text().strip()) == 64
    # Where a vault cannot be encrypted again, its password stays the one that opens it.
    kept = password.read_text()
    vault.write_text("vault_x: not encrypted\n")
    assert run(commands).returncode != 0 and password.read_text() == kept


# A name that is defined: a function, a class, a variable, a key of YAML.
DEFINED = re.compile(r"\b(?:def|class|for) +(\w+)|^ *(?:- )?(\w+)(?:: |:$| = |, \w+ = )", re.M)
REPLACED_NAMES = set(
    "answer answers anew ask asked asks beside colour figures fleet folder keeper mended"  # codespell:ignore
    " mishap moment proof proven settled strange told wiring"  # codespell:ignore
    "".split()
)
# Names of others, AWX and Grafana.
OTHERS = re.compile(r"ask_\w+_on_launch|folder_?uids?|grafana_folder", re.I)


def replaced_names(text):
    names = {name for found in DEFINED.findall(text) for name in found if name and not OTHERS.fullmatch(name)}
    return sorted(name for name in names if set(re.findall(r"[a-z]+", name.lower())) & REPLACED_NAMES)


def test_names_use_the_terms_of_the_field():
    product = "cli library module_utils playbooks plugins roles scripts shiftmaster_monitoring group_vars".split()
    command = ["git", "ls-files", "--", *(f"{part}/*.{kind}" for part in product for kind in ("py", "yml"))]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in names if (ROOT / name).exists()}
    assert len(texts) > 500
    assert [f"{name}: {one}" for name, text in texts.items() for one in replaced_names(text)] == []


def test_a_replaced_name_is_found():
    text = (
        "def ask_x():\n    the_answer = 1\nclass Fleet:\n- told: 1\n  __a_moment:\n  ask_tags_on_launch: 1\n  task: 1\n"
    )
    assert replaced_names(text) == ["Fleet", "__a_moment", "ask_x", "the_answer", "told"]

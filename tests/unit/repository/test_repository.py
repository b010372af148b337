"""Rules that hold for the entire repository."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import demo
import inventories
import offenders
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent


@functools.cache
def files(*patterns):
    """Files that are or would be committed; directories are given as "name/"."""
    result = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = sorted({ROOT / name for name in result.stdout.split("\0") if name})
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def relative(path):
    return str(path.relative_to(ROOT))


@functools.cache
def text_of(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def run(*command, **more):
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", **more}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


class Loader(yaml.CSafeLoader):
    """Reads Ansible's YAML; what is in a vault stays a mark of its own."""


Loader.add_constructor("!vault", lambda loader, node: "$ANSIBLE_VAULT")
Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))


@functools.cache
def load(path):
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)


# --- versions -------------------------------------------------------------------------------------------------------


def test_pinned_collections_are_those_of_the_ansible_package():
    directories = importlib.util.find_spec("ansible_collections").submodule_search_locations
    absent = []
    for pin in load(ROOT / "requirements.yml")["collections"]:
        manifests = [Path(directory, *pin["name"].split("."), "MANIFEST.json") for directory in directories]
        manifest = next((path for path in manifests if path.exists()), None)
        if manifest is None:
            absent.append(pin["name"])
            continue
        assert json.loads(manifest.read_text())["collection_info"]["version"] == pin["version"], pin["name"]
    # Collections missing from that package are installed with AWX.
    assert absent == ["awx.awx"]


def test_every_collection_in_use_is_pinned():
    pinned = {pin["name"] for pin in load(ROOT / "requirements.yml")["collections"]}
    used = set()
    for path in files(
        "roles/*.yml", "playbooks/*.yml", "molecule/*.yml", "inventory/*.yml", "group_vars/*.yml", "*.cfg"
    ):
        used |= set(re.findall(r"\b((?:community|ansible)\.\w+|awx\.awx)\.\w+", text_of(path)))
    assert used - pinned - {"ansible.builtin", "ansible.cfg"} == set()


def test_locked_requirements_name_no_index_and_have_hashes():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if re.search(r"://|--(extra-)?index|--find-links|--trusted", line)] == []
    packages = [line for line in lines if re.match(r"[a-z]", line)]
    assert packages
    assert [line for line in packages if not re.fullmatch(r"[\w.-]+==[\w.!+]+ \\", line)] == []


def test_the_lock_file_matches_the_requirements():
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.M))
    requirements = re.findall(r"^([\w.-]+)(?:==([\w.]+))?$", (ROOT / "requirements.in").read_text(), re.M)
    assert [(name, version) for name, version in requirements if version and locked.get(name) != version] == []
    assert [name for name, _ in requirements if name not in locked] == []


# --- secrets --------------------------------------------------------------------------------------------------------


def test_no_private_key_is_committed():
    assert [
        relative(path) for path in files() if re.search(r"^-----BEGIN [A-Z ]*PRIVATE KEY-----$", text_of(path), re.M)
    ] == []


def test_vaults_are_encrypted_or_created_for_each_installation():
    for path in files("**/vault.yml", "**/vault.yaml", "**/*.vault.yml"):
        text = text_of(path)
        if text.startswith("$ANSIBLE_VAULT;"):
            continue
        plain = [
            name
            for name, value in (load(path) or {}).items()
            if name.startswith("vault_") and "$ANSIBLE_VAULT" not in str(value) and "lookup(" not in str(value)
        ]
        assert plain == [], f"{relative(path)} holds secrets that anyone can read"


SECRET_NAME = r"(?:password|passphrase|secret|private_key|api_key|token|credential)s?"
# A name with the word secret for something else: a file's name, a switch, a count.
HARMLESS = re.compile(
    r"_(file|path|dir|directory|days|seconds|length|mode|owner|group|encryption|method|enabled|user|name|logging|type)$"
    r"|^(update_password|secure_logging|server_tokens)$"
)


def contains_secrets(text):
    # A sentence or a path between quotes is no secret.
    text = re.sub(r"'([^'\n]*)'", lambda found: "''" if re.search("[ /]", found[1]) else found[0], text)
    return [
        word
        for word in re.findall(rf"\b\w*{SECRET_NAME}\w*\b", text, re.I)
        if not HARMLESS.search(word) and "no_log" not in word
    ]


def tasks_of(items):
    for item in items or []:
        for block in ("block", "rescue", "always"):
            yield from ({"no_log": item.get("no_log"), **task} for task in tasks_of(item.get(block)))
        if "block" not in item:
            yield item


def expressions(value):
    """The Jinja expressions in a task's arguments, and the names of arguments that take a secret."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if re.fullmatch(rf"\w*{SECRET_NAME}", str(name)) and isinstance(inner, str):
                yield str(name)
            yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)
    elif isinstance(value, str):
        yield from re.findall(r"{{.*?}}|{%.*?%}", value, re.S)


def hides_itself(task, role):
    """A module of this repository that marks each secret argument `no_log` may show its difference."""
    for directory in (ROOT / "library").iterdir():
        for name, arguments in task.items():
            source = directory / f"{name}.py"
            if isinstance(arguments, dict) and source.exists():
                secret = [key for key in arguments if contains_secrets(key)]
                # SECRET of host/quiet.py is marked.
                mark = r"(?:SECRET\b|(?:dict\(|given\(|list_of\(|{)[^)}]*(?:no_log\W+True|SECRET\b))"
                marked = [re.search(rf"\b{key}\W+{mark}", text_of(source)) for key in secret]
                return bool(secret) and all(marked)
    return False


def secrets_in(task, role):
    """Names of secrets that the task hands to a module, in its arguments or through its template."""
    arguments = {
        k: v
        for k, v in task.items()
        if k not in ("name", "no_log", "when", "register", "notify", "tags", "changed_when", "failed_when")
    }
    found = contains_secrets(" ".join(expressions(arguments)))
    template = task.get("ansible.builtin.template")
    if isinstance(template, dict):
        source = role / "templates" / str(template.get("src"))
        if source.exists():
            # Text shown in a template's diff: expressions, not the comments around them.
            found += contains_secrets(" ".join(re.findall(r"{{.*?}}", text_of(source), re.S)))
    return sorted(set(found))


@offenders.each(lambda: files("roles/*/tasks/*.yml", "roles/*/handlers/*.yml"), relative)
def test_tasks_with_secrets_use_the_switch(path):
    role = ROOT / path.relative_to(ROOT).parts[0] / path.relative_to(ROOT).parts[1]
    open_ones = [
        f"{task.get('name')}: {', '.join(found)}"
        for task in tasks_of(load(path))
        if not any(
            name in task
            for name in ("ansible.builtin.assert", "ansible.builtin.include_tasks", "ansible.builtin.import_tasks")
        )
        and (found := secrets_in(task, role))
        and not hides_itself(task, role)
        and not re.search(rf"\b(__)?{role.name}_secure_logging\b", str(task.get("no_log")))
    ]
    assert open_ones == []


# --- what this repository refuses -----------------------------------------------------------------------------------

REFUSED = {
    r"host_key_checking\s*[=:]\s*(?i:false|no)\b": "trusts any host",
    r"StrictHostKeyChecking[ =]no": "trusts any host",
    r"^\s*vault_password_file\s*=": "a password file in ansible.cfg",
    r"\[.*trusted=yes.*\]|^Trusted: yes": "an unsigned repository",
    r"^\s*(allow_unauthenticated|disable_gpg_check): true": "an unsigned package",
    r"^\s*ignore_errors:": "failures passed over",
    r"^\s*skip_list:|^\s*warn_list:": "a blanket skip of ansible-lint",
    r"^\s*vars_prompt:": "a question that AWX cannot answer",
    r"^\s*(Startup)?CPU(Weight|Shares|Quota)=": "a nice value undone (docs/decisions/0006-priorities.md)",
}


@offenders.each(REFUSED)
def test_forbidden_patterns_are_not_used(pattern):
    paths = files("*.cfg", "*.yml", "*.yaml", "*.j2", ".ansible-lint")
    assert [relative(path) for path in paths if re.search(pattern, text_of(path), re.M)] == [], REFUSED[pattern]


def test_a_rule_that_is_switched_off_shows_why():
    """`# noqa: rule` stands next to a comment of its own, on its line or on the one above."""
    silent = []
    for path in files("roles/*.yml", "playbooks/*.yml", "molecule/*.yml"):
        lines = text_of(path).splitlines()
        for number, line in enumerate(lines):
            if re.search(r"#\s*noqa", line) and not (number and lines[number - 1].strip().startswith("#")):
                silent.append(f"{relative(path)}:{number + 1}")
    assert silent == []


# --- playbooks, inventories, scenarios, scripts ---------------------------------------------------------------------


def test_ansible_lint_recognizes_every_playbook():
    """It checks the syntax of those below playbooks/ and of what its `kinds` name."""
    kinds = [pattern for kind in load(ROOT / ".ansible-lint")["kinds"] for pattern in [kind.get("playbook")] if pattern]
    known = {
        path
        for pattern in kinds
        for before, names, after in [re.fullmatch(r"(.*)\{(.*)\}(.*)", pattern).groups()]
        for name in names.split(",")
        for path in ROOT.glob(before + name + after)
    }
    plays = [
        path
        for path in files("molecule/**/*.yml")
        if path.parent.parent == ROOT / "molecule"
        and isinstance(content := load(path), list)
        and re.search(r"'(hosts|import_playbook)':", str(content))
    ]
    assert plays and [relative(path) for path in plays if path not in known] == []


@offenders.each(lambda: sorted({path.parent for path in files("inventory/**/hosts.yml")}), relative)
def test_inventory_is_topology_with_its_environment(directory):
    inventory, environment = inventories.parsed(directory), directory.name
    direct = {host.name for host in inventory.groups[environment].hosts}
    assert set(inventory.hosts) == direct, "hosts stand directly under the environment"
    raw = load(directory / "hosts.yml")["all"]["children"]
    assert raw[environment]["vars"]["ansible_group_priority"] == 10
    assert not (directory / "group_vars").exists()
    assert not (directory / "host_vars").exists()


def tasks_files():
    return files("roles/*/tasks/*.yml", "roles/*/handlers/*.yml")


@functools.cache
def constants():
    return {name for path in files("roles/*/vars/*.yml") for name in load(path) or {}}


@offenders.each(tasks_files, relative)
def test_no_result_is_overwritten_by_another_of_the_same_name(path):
    """A task that is skipped registers, too: that it was skipped."""
    found = [task["register"] for task in tasks_of(load(path)) if "register" in task]
    assert sorted(set(found)) == sorted(found)


@offenders.each(tasks_files, relative)
def test_no_fact_of_a_run_hides_a_variable_of_a_role(path):
    """A fact comes before a role's variables, in each later task: the role would read it in their place."""
    found = set()
    for task in tasks_of(load(path)):
        found |= {task.get("register"), *task.get("ansible.builtin.set_fact", {})} - {"cacheable"}
    assert found & constants() == set()


@offenders.each(
    lambda: files(
        "roles/**/*.yml", "roles/**/*.j2", "group_vars/**/*.yml", "playbooks/**/*.yml", "playbooks/**/*.j2", "*.yml"
    ),
    relative,
)
def test_no_result_depends_on_a_random_order(path):
    """These filters are of sets: what they give is in another order in each run, and a file of it changed each time."""
    found = re.findall(
        r"\| *(?:difference|intersect|symmetric_difference|union)\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)\s*\|? *\w*",
        text_of(path),
    )
    assert [use for use in found if not re.search(r"\)\s*\| *length$", use)] == [], "select('in', …) keeps the order"


# A name begins with what is done, after prefixes such as "configure | ".
IMPERATIVES = (
    "Acquire", "Add", "Allow", "Apply", "Back up", "Build", "Check", "Choose", "Close", "Collect", "Compare",
    "Complete", "Configure", "Confirm", "Copy", "Count", "Create", "Demote", "Deploy", "Diagnose", "Disable",
    "Drain", "Enable", "Evaluate", "Fail", "Fetch", "Find", "Grant", "Hold", "Inspect", "Install", "Issue", "List",
    "Load", "Migrate", "Move", "Pack", "Plan", "Prepare", "Promote", "Prune", "Query", "Read", "Reboot", "Record",
    "Recover", "Reject", "Release", "Reload", "Remove", "Rename", "Render", "Replace", "Report", "Request",
    "Restart", "Restore", "Resume", "Revert", "Revoke", "Roll back", "Run", "Send", "Set", "Show", "Silence",
    "Start", "Stop", "Switch", "Test", "Unpack", "Update", "Upgrade", "Verify", "Wait", "Warn", "Write",
)  # fmt: skip
# Plays that are one phase on the screen have its title (module_utils/shiftmaster/reports/run_texts.py).
TITLES = {
    "Application hosts", "Backups", "Cache and broker", "Certificates", "Database", "Exporters", "Monitoring",
    "Options", "Preflight", "Restore", "Status", "Summary", "Web server",
}  # fmt: skip


def names(items):
    """(name, whether it is a play) of plays, tasks and handlers; of those in blocks and plays, too."""
    for item in items or []:
        if "name" in item:
            yield item["name"], any(key.endswith(("hosts", "import_playbook")) for key in item)
        for part in ("pre_tasks", "tasks", "post_tasks", "handlers", "block", "rescue", "always"):
            yield from names(item.get(part))


def test_names_of_plays_and_tasks_begin_with_an_imperative():
    paths = tasks_files() + files(":(glob)*.yml", "playbooks/*.yml", "molecule/*.yml", "tests/peer/*.yml")
    assert IMPERATIVES == tuple(sorted(set(IMPERATIVES)))
    begin = re.compile(rf"(?:.*\| )?({'|'.join(IMPERATIVES)}) (?!(?:it|them|those)\b)")
    used, wrong = set(), []
    for path in paths:
        items = load(path)
        for name, play in names(items) if isinstance(items, list) else ():
            match = begin.match(name)
            used |= {match[1]} if match else set()
            if not match and not (play and name in TITLES):
                wrong.append(f"{relative(path)}: {name}")
    wrong += [f"no name begins with {verb}" for verb in IMPERATIVES if verb not in used]
    screen = text_of(ROOT / "module_utils/shiftmaster/reports/run_texts.py")
    wrong += [f"no phase has the title {title}" for title in sorted(TITLES) if f'"{title}"' not in screen]
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


def test_files_with_an_interpreter_line_are_executable():
    scripts = [path for path in files("scripts/", ".ci/", "inventory/") if text_of(path).startswith("#!")]
    assert scripts
    assert [relative(path) for path in scripts if not path.stat().st_mode & stat.S_IXUSR] == []


def test_group_variables_are_found_from_both_places():
    link = ROOT / "playbooks/group_vars"
    assert link.is_symlink() and os.readlink(link) == "../group_vars"
    assert not list((ROOT / "group_vars/all").glob("*vault*"))


@pytest.mark.parametrize(
    ("active", "wanted", "expected"), [('"2.1.0"\n', "", "2.1.0"), ("", "", "2.0.0"), ('"2.1.0"\n', "2.0.0", "2.0.0")]
)
def test_a_restarted_demo_keeps_its_version(monkeypatch, tmp_path, active, wanted, expected):
    """./shiftmaster -E demo deploy had deployed it, and make demo brought the one before back."""
    deployed = []
    monkeypatch.setenv("VERSION", wanted)
    monkeypatch.setattr(demo, "HOME", tmp_path)
    monkeypatch.setattr(demo, "SETTINGS", tmp_path / "settings.json")
    monkeypatch.setattr(demo, "docker", lambda *_words, **_options: SimpleNamespace(stdout=active))
    for name in ("pack_application", "start_container"):
        monkeypatch.setattr(demo, name, lambda: None)
    monkeypatch.setattr(demo, "deploy", lambda version: deployed.append(version) or 1)
    assert demo.up() == 1 and deployed == [expected]


def test_the_demo_reaches_its_own_host_alone(monkeypatch):
    """With an exported inventory of real hosts `make demo-deploy` must not change those."""
    ran = []
    monkeypatch.setenv("ANSIBLE_INVENTORY", "inventory/single")
    monkeypatch.setattr(
        demo.subprocess,
        "run",
        lambda command, **more: ran.append((command, more["env"])) or SimpleNamespace(returncode=0),
    )
    monkeypatch.setenv("ANSIBLE_LIMIT", "app1")
    assert demo.shiftmaster("deploy", "2.1.0") == 0
    ((command, environment),) = ran
    assert command == ["./shiftmaster", "-E", "demo", "deploy", "2.1.0"] and "ANSIBLE_LIMIT" not in environment


@pytest.mark.parametrize("command", ["up", "deploy", "diagnose", "fault"])
def test_the_demo_of_another_clone_is_left_alone(monkeypatch, capsys, tmp_path, command):
    monkeypatch.setattr(demo, "HOME", tmp_path)
    monkeypatch.setattr(demo, "SETTINGS", tmp_path / "settings.json")
    monkeypatch.setattr(demo, "pack_application", lambda: None)
    outputs = {"{{.State.Status}}": "running", '{{index .Config.Labels "shiftmaster-ops.clone"}}': "/srv/other"}
    calls = []

    def docker(*arguments, **_):
        calls.append(arguments)
        return SimpleNamespace(returncode=0, stdout=outputs[arguments[3]])

    monkeypatch.setattr(demo, "docker", docker)
    monkeypatch.setattr(sys, "argv", ["demo.py", command, "redis-stopped" if command == "fault" else "2.1.0"])
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert "/srv/other" in str(ended.value) and {call[0] for call in calls} == {"container"}


def test_each_fault_of_the_demo_is_in_the_makefile():
    (line,) = re.findall(r"(?m)^demo-fault: ## .*NAME=(.*)$", (ROOT / "Makefile").read_text())
    assert line.split(", ") == [*demo.FAULTS, "none"]


def test_playbooks_set_what_the_programs_set_for_a_session_of_a_superuser():
    """YAML cannot import it: module_utils/shiftmaster/host/sql.py."""
    from ansible.module_utils.shiftmaster.host.sql import COUNT_MIGRATIONS, SAFE_SEARCH_PATH

    texts = {
        path: path.read_text(encoding="utf-8")
        for path in [*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/**/*.yml")]
    }
    named = {path: text for path, text in texts.items() if "search_path=pg_catalog" in text}
    assert len(named) >= 4
    wrong = [
        path for path, text in named.items() if text.count("search_path=pg_catalog") != text.count(SAFE_SEARCH_PATH)
    ]
    wrong += [path for path, text in texts.items() if "django_migrations" in text and COUNT_MIGRATIONS not in text]
    assert not wrong

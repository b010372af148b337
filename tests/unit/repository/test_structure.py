"""The deploy path reads top-down: playbooks hold roles, roles keep their variables, and the path has few files."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import offenders
import yaml

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml")) + [ROOT / "deploy.yml", ROOT / "rollback.yml"]
INCLUDES = re.compile(r"ansible\.builtin\.(?:include|import)_(role|tasks)$")
# main.yml includes it in place of build and migrate.
OTHER_OPERATION = "rollback"
PHASES = ["lock", "plan", "recover", "build", "migrate", "cutover", "finish", "abort", "end"]


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8")) or []


def tasks_of(items):
    """Every task, in its order; those of blocks, rescues and always, too."""
    for item in items:
        parts = [part for part in ("block", "rescue", "always") if part in item]
        yield from (task for part in parts for task in tasks_of(item[part]))
        if not parts:
            yield item


def included_by(task):
    """("role", name, entry point) or ("tasks", file names) of a task that includes; None of another."""
    for key, value in task.items():
        if not (found := INCLUDES.fullmatch(key)):
            continue
        if found[1] == "role":
            return ("role", value["name"], value.get("tasks_from", "main"))
        name = value if isinstance(value, str) else value["file"]
        loop = re.findall(r"'(\w+)'", str(task.get("loop", ""))) if "{{" in name else []
        return ("tasks", [f"{one}.yml" for one in loop if one != OTHER_OPERATION] or [name])
    return None


@offenders.each(PLAYBOOKS, lambda path: str(path.relative_to(ROOT)))
def test_a_playbook_is_plays_and_roles(path):
    wrong = []
    for play in load(path):
        if "import_playbook" in play or "ansible.builtin.import_playbook" in play:
            continue
        parts = ("pre_tasks", "tasks", "post_tasks", "handlers")
        wrong += [
            task["name"] for part in parts for task in play.get(part, []) if (included_by(task) or " ")[0] != "role"
        ]
    assert wrong == []


def test_playbooks_have_no_tasks_and_no_templates_of_their_own():
    assert {path.name for path in (ROOT / "playbooks").iterdir() if path.is_dir()} == {"group_vars"}


@offenders.each(ROLES)
def test_no_role_reads_private_variables_of_another(role):
    others = [re.escape(other) for other in ROLES if other != role and not role.startswith(f"{other}_")]
    private = re.compile(rf"\b__(?:{'|'.join(others)})_(?<!__{role}_)\w+")
    own = re.compile(rf"__{role}_")
    found = {
        name
        for path in (ROOT / "roles" / role).rglob("*")
        if path.suffix in (".yml", ".j2")
        for name in private.findall(path.read_text(encoding="utf-8"))
        if not own.match(name)
    }
    assert sorted(found) == []


# A variable is defined as a key, by what a task or a loop names, or in a template.
DEFINED = (
    re.compile(r"""(?:^\s*(?:- )?|[{,] *)["']?(\w+)["']?:(?= |$)""", re.M),
    re.compile(r"\b(?:register|loop_var|index_var|notify|listen): (\w+)"),
    re.compile(r"\{%-? (?:set|for|macro) (\w+)(?:, (\w+))?"),
)
# No variables: a metric, packages of Python, the beginning of names, and what include_vars names.
OTHERS = {
    "alertmanager_config_last_reload_successful", "alertmanager_config_last_reload_success_timestamp_seconds",
    "prometheus_config_last_reload_success_timestamp_seconds", "shiftmaster_monitoring", "shiftmaster_key_rotation",
    "offsite_keep_", "awx_data",
}  # fmt: skip


def undefined_in(role, texts, known):
    """{variable of a role: files of it} that its files use and nothing defines."""
    used = re.compile(rf"(?<![.\w])(?:__)?{role}_\w+")
    found = {}
    for path, text in texts.items():
        for name in set(used.findall(text)) - known:
            found.setdefault(name, []).append(path)
    return found


def test_variables_that_a_role_uses_are_defined():
    where = ("roles/*.yml", "roles/*.j2", "playbooks/*.yml", "group_vars/*.yml", "library/*.py", "plugins/*.py")
    command = ["git", "ls-files", "--", *where]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in names if (ROOT / name).exists()}
    known = OTHERS | {path.stem for path in (ROOT / "library").glob("*/*.py")}
    for name, text in texts.items():
        patterns = (re.compile(r"(\w+)"),) if name.endswith(".py") else DEFINED
        known.update(one for pattern in patterns for match in pattern.finditer(text) for one in match.groups())
    wrong = []
    for role in ROLES:
        own = {name: text for name, text in texts.items() if name.startswith(f"roles/{role}/") and "/meta/" not in name}
        wrong += [f"{name}: {', '.join(paths)}" for name, paths in undefined_in(role, own, known).items()]
    assert wrong == []


def test_an_undefined_variable_is_found():
    text = "register: x_one\nwhen: x_one.stdout and x_two | length > 0 and __x_three\nx.x_four: x_five_of.x_one\n"
    assert set(undefined_in("x", {"f": text}, {"x_one"})) == {"x_two", "__x_three", "x_five_of"}


@offenders.each(ROLES)
def test_a_role_has_few_private_variables(role):
    texts = [
        path.read_text(encoding="utf-8")
        for path in (ROOT / "roles" / role).rglob("*")
        if path.suffix in (".yml", ".j2")
    ]
    assert len({name for text in texts for name in re.findall(rf"\b__{role}_\w+", text)}) <= 200


def path_of_a_deploy():
    """The files that a reader opens from `-e shiftmaster_version=` to the link that is switched, in that order.

    Playbooks and group variables; the tasks of the preflight and of role release as far as the cutover, with what they
    include; the modules and the filter that get the version, its source or the release; what the release module needs
    to switch, down to the rename of the link.
    """
    files = [ROOT / "deploy.yml", ROOT / "playbooks/deploy.yml"]
    files += [ROOT / "group_vars/all" / name for name in ("application.yml", "preflight.yml")]
    given = re.compile(r"\b(preflight_version|preflight_source|shiftmaster_source|release_facts)\b")
    modules = {path.stem: path for path in (ROOT / "library").glob("*/*.py")}
    modules |= {path.stem: path for path in (ROOT / "plugins/action").glob("*.py")}

    def follow(path):
        if path in files:
            return
        files.append(path)
        for task in tasks_of(load(path)):
            found = included_by(task)
            if found and found[0] == "role" and found[1] in ("release", "maintenance", "drain"):
                follow(ROOT / "roles" / found[1] / "tasks" / f"{found[2]}.yml")
            elif found and found[0] == "tasks":
                for name in found[1]:
                    if name not in ("abort.yml", "finish.yml", "end.yml") and "{{" not in name:
                        follow(path.parent / name)
            for key in set(task) & set(modules):
                if modules[key] not in files and given.search(str(task[key])):
                    files.append(modules[key])

    for play in load(ROOT / "playbooks/deploy.yml"):
        for task in play["tasks"]:
            found = included_by(task)
            if found[1] == "preflight" and found[2] == "main" or found[1] == "release" and found[2] == "main":
                follow(ROOT / "roles" / found[1] / "tasks" / f"{found[2]}.yml")
    files.append(ROOT / "roles/release/vars/main.yml")
    engine = ROOT / "module_utils/shiftmaster/release"
    files += [engine / name for name in ("releases.py", "cutover.py", "layout.py")]
    return [*files, ROOT / "plugins/filter/earlier_version.py"]


def test_rules_of_a_preflight_are_known_in_its_play():
    """Variables of a role that is included, not imported, are known to this role alone."""
    of_all = {name for path in (ROOT / "group_vars/all").glob("*.yml") for name in load(path)}
    found = []
    for path in PLAYBOOKS:
        for play in load(path):
            tasks = list(tasks_of(play.get("tasks", [])))
            imported = {
                task["ansible.builtin.import_role"]["name"] for task in tasks if "ansible.builtin.import_role" in task
            }
            files = [ROOT / "roles" / role / "vars/main.yml" for role in imported]
            known = of_all.union(play.get("vars", {}), *(load(file) for file in files if file.exists()))
            named = {name for task in tasks for name in task.get("vars", {}).get("preflight_rules", [])}
            found += [f"{path.name}: {name}" for name in sorted(named - known)]
    assert found == []


def test_the_path_of_a_deploy_has_few_files():
    files = path_of_a_deploy()
    assert len(files) == len(set(files)) and all(path.exists() for path in files)
    names = [path.name for path in files]
    assert [name for name in names if name in ("lock.yml", "plan.yml", "recover.yml", "build.yml", "cutover.yml")]
    assert len(files) <= 30, "\n".join(str(path.relative_to(ROOT)) for path in files)


def test_role_release_reads_as_its_phases():
    path = ROOT / "roles/release/tasks/main.yml"
    found = [included_by(task) for task in tasks_of(load(path))]
    assert all(one and one[0] == "tasks" for one in found)
    assert [name.removesuffix(".yml") for one in found for name in one[1]] == PHASES
    assert len([line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]) <= 50


def test_the_summary_reads_the_fact_of_the_release_and_nothing_private():
    text = (ROOT / "roles/release/templates/summary.txt.j2").read_text(encoding="utf-8")
    assert "release_facts" in text and "__" not in text


def test_results_of_roles_are_no_unknown_variables_of_a_second_preflight():
    """recover.yml and rotate.yml check the names of variables again after the roles of their first plays."""
    settings = load(ROOT / "group_vars/all/preflight.yml")
    known = set(settings["preflight_known_variables"])
    for path in (ROOT / "group_vars/all").glob("*.yml"):
        known |= set(re.findall(r"(?m)^(\w+):", path.read_text(encoding="utf-8")))
    results = set()
    for path in (ROOT / "roles").glob("*/tasks/*.yml"):
        for task in tasks_of(load(path)):
            results |= {task["register"]} if "register" in task else set()
            results |= set(task.get("ansible.builtin.set_fact", {}))
    for role in settings["preflight_roles"]:
        entries = load(ROOT / f"roles/{role}/meta/argument_specs.yml")["argument_specs"]
        known |= set(next(iter(entries.values())).get("options", {}))
    checked = tuple(f"{role}_" for role in settings["preflight_roles"])
    assert sorted(name for name in results - known if name.startswith(checked)) == []


@functools.cache
def documented():
    """{module of this repository: its options}."""
    found = {}
    for path in (ROOT / "library").glob("*/*.py"):
        text = re.search(r'DOCUMENTATION = r?"""(.*?)"""', path.read_text(encoding="utf-8"), re.S)
        found |= {path.stem: yaml.safe_load(text[1]).get("options") or {}} if text else {}
    return found


def unknown_options(value, options, where=""):
    """The keys of a dictionary, at any depth, that the documentation does not have."""
    if isinstance(value, list):
        return [name for one in value for name in unknown_options(one, options, where)]
    if not isinstance(value, dict):
        return []
    known = options | {alias: {} for option in options.values() for alias in option.get("aliases", [])}
    return [where + key for key in value if key not in known] + [
        name
        for key, inner in value.items()
        if (below := known.get(key, {}).get("suboptions"))
        for name in unknown_options(inner, below, f"{where}{key}.")
    ]


@offenders.each(ROLES)
def test_options_of_the_modules_exist_also_where_a_variable_holds_them(role):
    # ansible-lint sees those only that a task itself has.
    held = {}
    for path in sorted((ROOT / "roles" / role).glob("vars/*.yml")):
        held |= load(path) or {}
    wrong = []
    for path in [*(ROOT / "roles" / role).glob("tasks/*.yml"), *(ROOT / "roles" / role).glob("handlers/*.yml")]:
        for task in tasks_of(load(path)):
            for module in documented().keys() & task.keys():
                value = task[module]
                if isinstance(value, str) and (name := re.match(r"\{\{ (\w+)", value)):
                    value = held.get(name[1], {})
                wrong += [f"{path.name}: {module}: {one}" for one in unknown_options(value, documented()[module])]
    assert wrong == []

"""What can be known of an application before a build: its source is read as text, and none of its code runs.

Only what is certain is a problem; what depends on the application is a note.
"""

from __future__ import annotations

import ast
import posixpath
import re
from typing import Dict, Iterable, List, Tuple

# A hostile source must cost the controller little: what is more or longer is not read.
_MOST_FILES, _MOST_CHARACTERS, _LONGEST_CHAIN = 2000, 200_000, 30
# What a release and every unit have besides.
_ALWAYS = frozenset(
    "SHIFTMASTER_RELEASE SHIFTMASTER_VERSION SHIFTMASTER_SLOT PYTHONPATH STATIC_ROOT HOME LANG PATH USER".split()
)


def wanted(path: str) -> bool:
    """Tell whether a file of a source is read: its Python, but for that of tests."""
    return path.endswith(".py") and not re.search(r"(^|/)(tests?|site-packages)/|(^|/)(test_[^/]*|conftest)\.py$", path)


def check(texts: Dict[str, str], migrations: Iterable[dict], options: dict) -> Tuple[List[str], List[str]]:
    """Return (problems, notes).

    texts: {path: text} of the source's Python. migrations: as classify_files() returns them. options: settings_module,
    environment (the names that a release has), site_settings, linked_directories, collectstatic.
    """
    texts = {path: text for path, text in list(texts.items())[:_MOST_FILES] if len(text) <= _MOST_CHARACTERS}
    module, problems, notes = options["settings_module"], [], []
    chain, complete = settings_chain(texts, module)
    if not chain:
        return ["shiftmaster_settings_module: the source has no module %s" % module], []
    own, others = set_names(texts.values())
    known = _ALWAYS.union(options["environment"], own)
    for path, sure in chain.items():
        tree = parsed(texts[path])
        if tree is None:
            problems.append("%s is no valid Python, and the settings import it" % path)
            continue
        missing = [name for name in required_names(tree) if name not in known]
        if missing and sure and not others:
            problems.append(
                "%s needs %s in the environment (shiftmaster_extra_environment)" % (path, ", ".join(missing))
            )
    complete_text = "\n".join(texts[path] for path in chain) + options["site_settings"]
    takes = re.search(r"""["']STATIC_ROOT["']""", complete_text) or re.search(
        r"^\s*STATIC_ROOT\s*=", options["site_settings"], re.M
    )
    if options["collectstatic"] and complete and "django.contrib.staticfiles" in complete_text and not takes:
        problems.append(
            "STATIC_ROOT does not come from the environment, and the source cannot be written to: set"
            ' STATIC_ROOT = os.environ["STATIC_ROOT"] in shiftmaster_site_settings'
        )
    for app, names in leaves(migrations).items():
        # An application that is not installed has no say.
        if len(names) > 1 and re.search(r"""["'](\w+\.)*%s(\.\w+)*["']""" % re.escape(app), complete_text):
            problems.append(
                "%s: migrations %s are both the last; merge them (makemigrations --merge)" % (app, " and ".join(names))
            )
    places = [
        "%s:%d" % place for path, text in texts.items() for place in writes(path, text, options["linked_directories"])
    ]
    if places:
        notes.append(
            "the application writes below its own source, which is read-only (%s); name the directories in"
            " shiftmaster_linked_directories" % ", ".join(places[:5])
        )
    return problems, notes


def leaves(migrations: Iterable[dict]) -> Dict[str, List[str]]:
    """Return {app: names} of the migrations that no other one of their app depends on; not of squashed ones."""
    names, needed, squashed = {}, set(), {one["app"] for one in migrations if one.get("replaces")}
    for one in migrations:
        names.setdefault(one["app"], []).append(one["name"])
        needed.update(
            (dependency[0], dependency[1]) for dependency in one.get("dependencies") or [] if len(dependency) > 1
        )
    return {
        app: sorted(name for name in found if (app, name) not in needed)
        for app, found in names.items()
        if app not in squashed
    }


def parsed(text: str):
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def module_path(texts: Dict[str, str], module: str) -> str:
    """Return the file of a module, "" where the source has none."""
    path = module.replace(".", "/")
    return next((one for one in (path + ".py", path + "/__init__.py") if one in texts), "")


def settings_chain(texts: Dict[str, str], module: str) -> Tuple[Dict[str, bool], bool]:
    """Return {path: whether it is imported in any case} of the settings with the modules that they take over.

    And whether all of these are in the source.
    """
    found, todo, complete = {}, [(module_path(texts, module), True)], True
    while todo:
        path, sure = todo.pop()
        if not path or path in found or len(found) == _LONGEST_CHAIN:
            continue
        found[path] = sure
        tree = parsed(texts[path])
        for node in ast.walk(tree) if tree else []:
            if isinstance(node, ast.ImportFrom) and any(name.name == "*" for name in node.names):
                package = posixpath.dirname(path).split("/")
                above = package[: len(package) - node.level + 1] if node.level else []
                target = ".".join([part for part in above if part] + [node.module] * bool(node.module))
                todo.append((module_path(texts, target), sure and node in tree.body))
                complete = complete and bool(todo[-1][0])
    return found, complete


def always_evaluated(node):
    """Yield a node and those below it that are evaluated whenever it is. As deep as a source likes: no recursion."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.IfExp):
            todo.append(node.test)
        elif isinstance(node, ast.BoolOp):
            todo.append(node.values[0])
        elif not isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            todo += ast.iter_child_nodes(node)


def required_names(tree) -> List[str]:
    """Return the names without which os.environ["..."] fails wherever the module is imported."""
    found = set()
    for statement in tree.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.Expr)):
            for node in always_evaluated(statement):
                if (
                    isinstance(node, ast.Subscript)
                    and isinstance(node.ctx, ast.Load)
                    and isinstance(node.value, (ast.Attribute, ast.Name))
                    and "environ" in (getattr(node.value, "attr", ""), getattr(node.value, "id", ""))
                    and isinstance(getattr(node.slice, "value", None), str)
                ):
                    found.add(node.slice.value)
    return sorted(found)


# The source sets a variable itself, or reads some from a file.
_SETS = re.compile(r"""environ(?:\[|\.setdefault\()\s*["'](\w+)["']\s*(?:\]\s*=(?!=)|,)""")
_LOADS = re.compile(r"\b(?:load_dotenv|read_env|environ\.update)\b")


def set_names(texts: Iterable[str]) -> Tuple[frozenset, bool]:
    """Return the variables that the source sets, and whether it sets others whose names it does not show."""
    texts = list(texts)
    names = frozenset(name for text in texts for name in _SETS.findall(text))
    return names, any(_LOADS.search(text) for text in texts)


_WRITES = re.compile(r"(?:makedirs|mkdir|open|FileHandler|filename\W+)\W?[^\n]*\b(?:BASE_DIR|__file__)\b[^\n]*")


def writes(path: str, text: str, linked: Iterable[str]) -> Iterable[Tuple[str, int]]:
    """Return (path, line) where a directory is made or a file is written next to the source."""
    for number, line in enumerate(text.splitlines(), 1):
        fits = _WRITES.search(line[:500])
        if fits and not ("open" in fits[0][:5] and not re.search(r"""["'][wax]b?["']""", line)):
            if not any("%s%s%s" % (quote, name, quote) in line for name in linked for quote in "\"'"):
                yield path, number

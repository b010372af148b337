"""Read Django migrations without running them, and evaluate their effect on the code that is already running.

A deploy runs migrations while the old code is still live, and a rollback starts the old code on the new schema. So
the one question is: does the code from before this migration work on the database after it?

class         meaning
expand        yes: it only adds or loosens
contract      no, or it cannot be known
irreversible  as contract, and it cannot be unapplied either: only a backup goes back

`reversible` is a fact of its own: an expand migration without reverse code is not reversible and does no harm to the
old code. docs/decisions/0002-migration-classes.md has the rules and the reasons.

Nothing here imports Django or the application: files are parsed, never executed.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import fnmatch
import io
import json
import os
import re
import tokenize
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from ..host import safe_files

EXPAND, CONTRACT, IRREVERSIBLE = "expand", "contract", "irreversible"
CLASSES = (EXPAND, CONTRACT, IRREVERSIBLE)

# Files of a release are hostile, and syntax trees take 500 times the memory of a dense text. What is beyond these
# limits counts as unreadable.
MAX_FILE_BYTES = 2 * 1024 * 1024
MAX_APP_BYTES = 2 * 1024 * 1024
MAX_TREE_BYTES = 64 * 1024 * 1024
SKIPPED_FOLDERS = frozenset(
    (".git", ".hg", ".tox", ".venv", "venv", "env", "node_modules", "site-packages", "__pycache__")
)
MIGRATION_PATH = re.compile(r"(?:^|/)(?P<directory>[^/]+)/migrations/(?P<name>[^/_~][^/]*)\.py$")
ANNOTATION = re.compile(r"^#\s*shiftmaster\s*:(?P<value>.*)", re.IGNORECASE)

# Arguments of a field that never reach the database: Django's own list (Field.non_db_attrs), and those that only
# Python code reads.
PYTHON_ONLY = frozenset(
    "auto_now auto_now_add blank choices decoder default editable encoder error_messages help_text limit_choices_to"
    " on_delete related_name related_query_name serialize storage upload_to validators verbose_name width_field"
    " height_field db_comment parent_link unique_for_date unique_for_month unique_for_year".split()
)
# Types whose every value fits into the second type, and whose readers do not notice.
WIDENS = {
    "AutoField": ("BigAutoField",),
    "SmallAutoField": ("AutoField", "BigAutoField"),
    "SmallIntegerField": ("IntegerField", "BigIntegerField"),
    "IntegerField": ("BigIntegerField",),
    "PositiveSmallIntegerField": (
        "PositiveIntegerField PositiveBigIntegerField SmallIntegerField IntegerField BigIntegerField".split()
    ),
    "PositiveIntegerField": ("PositiveBigIntegerField", "IntegerField", "BigIntegerField"),
    "PositiveBigIntegerField": ("BigIntegerField",),
    "CharField": ("TextField",),
    **dict.fromkeys(("SlugField", "EmailField", "URLField", "FilePathField"), ("CharField", "TextField")),
    "FileField": ("ImageField",),
    "ImageField": ("FileField",),
}
# The length that a field has where none is written.
DEFAULT_LENGTH = {
    "SlugField": 50,
    "EmailField": 254,
    "URLField": 200,
    **dict.fromkeys(("FileField", "ImageField", "FilePathField"), 100),
}
# Arguments of a field that compare_fields() compares with their defaults.
WITH_DEFAULTS = "max_length null unique db_index db_default db_constraint max_digits decimal_places".split()
EXTENSIONS = frozenset(
    "CreateExtension BloomExtension BtreeGinExtension BtreeGistExtension CITextExtension CryptoExtension"
    " HStoreExtension TrigramExtension UnaccentExtension".split()
)


class _Known(NamedTuple):
    """What is known about a kind of operation beforehand."""

    arguments: Tuple[str, ...]  # Names of the positional arguments.
    method: str  # Name of the function below that evaluates it.


_MODEL, _FIELD = ("model_name",), ("model_name", "name", "field")
KNOWN = {
    "CreateModel": _Known(("name", "fields", "options", "bases", "managers"), "create_model"),
    "DeleteModel": _Known(("name",), "delete_model"),
    "RenameModel": _Known(("old_name", "new_name"), "rename_table"),
    "AlterModelTable": _Known(("name", "table"), "rename_table"),
    "AlterModelTableComment": _Known(("name", "table_comment"), "harmless"),
    "AlterModelOptions": _Known(("name", "options"), "harmless"),
    "AlterModelManagers": _Known(("name", "managers"), "harmless"),
    "AlterUniqueTogether": _Known(("name", "unique_together"), "together"),
    "AlterIndexTogether": _Known(("name", "index_together"), "together"),
    "AlterOrderWithRespectTo": _Known(("name", "order_with_respect_to"), "order"),
    "AddField": _Known(_FIELD, "add_field"),
    "RemoveField": _Known(("model_name", "name"), "remove_field"),
    "AlterField": _Known(_FIELD, "alter_field"),
    "RenameField": _Known(("model_name", "old_name", "new_name"), "rename_field"),
    "AddIndex": _Known(_MODEL + ("index",), "add_index"),
    "AddIndexConcurrently": _Known(_MODEL + ("index",), "harmless"),
    "RemoveIndex": _Known(_MODEL + ("name",), "remove_index"),
    "RemoveIndexConcurrently": _Known(_MODEL + ("name",), "harmless"),
    "RenameIndex": _Known(_MODEL + ("new_name", "old_name", "old_fields"), "harmless"),
    "AddConstraint": _Known(_MODEL + ("constraint",), "add_constraint"),
    "AddConstraintNotValid": _Known(_MODEL + ("constraint",), "add_constraint"),
    "ValidateConstraint": _Known(_MODEL + ("name",), "harmless"),
    "AlterConstraint": _Known(_MODEL + ("name", "constraint"), "harmless"),
    "RemoveConstraint": _Known(_MODEL + ("name",), "harmless"),
    "RunSQL": _Known(("sql", "reverse_sql", "state_operations", "hints", "elidable"), "run_sql"),
    "RunPython": _Known(("code", "reverse_code", "atomic", "hints", "elidable"), "run_python"),
    "SeparateDatabaseAndState": _Known(("database_operations", "state_operations"), "separate"),
    "CreateCollation": _Known(("name", "locale", "provider", "deterministic"), "harmless"),
    "RemoveCollation": _Known(("name", "locale", "provider", "deterministic"), "remove_collation"),
}
KNOWN.update((name, _Known(("name",), "harmless")) for name in EXTENSIONS)


class Result(NamedTuple):
    """What one operation does, seen from the old code."""

    klass: str = EXPAND
    reason: str = ""
    reversible: bool = True
    firm: bool = False  # No annotation can make this an expand: the old code names what goes away.
    if_new: Optional[str] = None  # The class where the old code has never seen the model.
    warnings: tuple = ()
    loses: str = ""  # What unapplying cannot bring back.


def _widens(*warnings, loses="") -> Result:
    return Result(if_new=EXPAND, warnings=warnings, loses=loses)


def _narrows(reason, *warnings, **more) -> Result:
    return Result(CONTRACT, reason, if_new=EXPAND, warnings=warnings, **more)


# ---------------------------------------------------------------------------------------------- reading expressions


def _literal(node, default=None):
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return default


def _dotted(node) -> Optional[str]:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    parts.append(node.id)
    return ".".join(reversed(parts))


def _arguments(node, names) -> Tuple[dict, bool]:
    """Return the arguments of a call by name, and whether all are written out. names: those of the positional ones."""
    arguments = {name: value for name, value in zip(names, node.args) if not isinstance(value, ast.Starred)}
    arguments.update((keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg is not None)
    starred = any(keyword.arg is None for keyword in node.keywords) or any(
        isinstance(value, ast.Starred) for value in node.args
    )
    return arguments, not starred and len(node.args) <= len(names)


class Names:
    """Resolves a name in a file to the full path that it was imported from."""

    def __init__(self, tree):
        self.imports = {}
        self.lists = {}
        for node in tree.body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.split(".")[0]
                    self.imports[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom):
                origin = ("." if node.level or not node.module else "") + (node.module or "")
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = "%s.%s" % (origin, alias.name)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                self.lists[name] = None if name in self.lists else node.value

    def full(self, node) -> str:
        dotted = _dotted(node)
        if dotted is None:
            return ""
        head, _, rest = dotted.partition(".")
        head = self.imports.get(head, head)
        return head + ("." + rest if rest else "")

    def django(self, node) -> Optional[str]:
        """Return the last part of the name where it is Django's own."""
        full = self.full(node)
        return full.rsplit(".", 1)[-1] if full.startswith("django.") else None


class Field:
    """A model field as written: its class and its arguments."""

    def __init__(self, node, names):
        self.kind, self.path, self.arguments, self.readable = None, "", {}, False
        if isinstance(node, ast.Call):
            self.kind, self.path = names.django(node.func), names.full(node.func)
            relation = self.kind in ("ForeignKey", "OneToOneField", "ManyToManyField")
            self.arguments, self.readable = _arguments(node, ("to", "on_delete") if relation else ("verbose_name",))

    @property
    def name(self):
        return self.path.rsplit(".", 1)[-1] or "a field"

    def has(self, argument) -> bool:
        return argument in self.arguments

    def value(self, argument, default=None):
        """Return a literal argument; Unknown where it is not a literal."""
        if argument not in self.arguments:
            return default
        return _literal(self.arguments[argument], Unknown)

    def dump(self, argument):
        node = self.arguments.get(argument)
        return None if node is None else ast.dump(node)

    def indexed(self):
        if self.value("unique", self.kind == "OneToOneField") or self.value("primary_key", False):
            return "unique"
        return "index" if self.value("db_index", self.kind in ("ForeignKey", "SlugField")) else ""


class _UnknownType:
    def __bool__(self):
        return False

    def __repr__(self):
        return "unknown"


Unknown = _UnknownType()


# The fields of an app's models, as its migrations leave them.
Models = Dict[str, Dict[str, Field]]


# ------------------------------------------------------------------------------------------------------ the operations


class Reader:
    """Evaluates the operations of one migration."""

    def __init__(self, names, models):
        self.names = names
        self.models = models
        self.created = set()
        self.records = []

    def new(self, model) -> bool:
        return model.lower() in self.created

    def read(self, nodes, state_only=False, database=True):
        for node in nodes:
            self.operation(node, state_only, database)

    def operation(self, node, state_only=False, database=True):
        if not isinstance(node, ast.Call):
            if not state_only:
                self.add("?", "", Result(CONTRACT, "an operation is not written as a call, so it cannot be read"))
            return
        full = self.names.full(node.func)
        name = self.names.django(node.func)
        known = KNOWN.get(name or "")
        if known is None:
            label = full.rsplit(".", 1)[-1] or "an operation"
            if not state_only:
                reason = "%s is not one of Django's own operations, so what it does is not known" % label
                self.add(label, "", Result(CONTRACT, reason))
            return
        arguments, readable = _arguments(node, known.arguments)
        if name == "SeparateDatabaseAndState":
            self.separate(arguments, state_only, readable)
            return
        model = _literal(arguments.get("model_name", arguments.get("name", arguments.get("old_name"))))
        model = model if isinstance(model, str) and name not in EXTENSIONS else ""
        target = model
        part = arguments.get("name") if "model_name" in arguments else None
        part = _literal(part if part is not None else arguments.get("old_name"))
        if "model_name" in arguments and isinstance(part, str):
            target = "%s.%s" % (model, part)
        elif name in ("AddIndex", "AddIndexConcurrently", "AddConstraint", "AddConstraintNotValid"):
            inner = arguments.get("index", arguments.get("constraint"))
            inner = {k.arg: k.value for k in inner.keywords} if isinstance(inner, ast.Call) else {}
            inner_name = _literal(inner.get("name"))
            target = "%s (%s)" % (model, inner_name) if isinstance(inner_name, str) else model
        if not readable and not state_only:
            self.add(name, target, Result(CONTRACT, "its arguments are not written out, so they cannot be read"))
            return
        if database and not state_only:
            result = getattr(self, known.method)(name, model, arguments)
            if model and self.new(model) and result.if_new is not None:
                result = result._replace(klass=result.if_new, reason="", warnings=())
            self.add(name, target, result, model)
            if name == "CreateModel" and model:
                self.created.add(model.lower())
            if name == "RenameModel" and self.new(model):
                self.created.add(str(_literal(arguments.get("new_name"))).lower())
        self.follow(name, model, arguments)

    def add(self, name, target, result, model=""):
        facts = dict(result._asdict(), warnings=list(result.warnings))
        self.records.append(
            {"operation": name, "target": target, "class": facts.pop("klass"), "model": model.lower(), **facts}
        )

    def separate(self, arguments, state_only, readable):
        """Only database_operations touch the database; state_operations change what later files are compared with."""
        database = literal_list(arguments.get("database_operations"), self.names)
        state = literal_list(arguments.get("state_operations"), self.names)
        if not state_only:
            if not readable or database is None:
                reason = "its database_operations are not a list that is written out, so they cannot be read"
                self.add("SeparateDatabaseAndState", "", Result(CONTRACT, reason))
            else:
                before = self.models
                # Database operations leave the state alone.
                self.models = {model: dict(fields) for model, fields in before.items()}
                count = len(self.records)
                self.read(database)
                if len(self.records) == count:
                    self.add("SeparateDatabaseAndState", "", Result())
                self.models = before
        if state is None:
            self.models.clear()  # Nothing is known any more.
        else:
            self.read(state, state_only=True)

    def follow(self, name, model, arguments):
        """Keep the models up to date, for a later AlterField to be compared with."""
        key = model.lower()
        if name == "CreateModel":
            fields = {}
            entries = literal_list(arguments.get("fields"), self.names)
            for entry in entries or ():
                if isinstance(entry, ast.Tuple) and len(entry.elts) == 2:
                    fields[str(_literal(entry.elts[0])).lower()] = Field(entry.elts[1], self.names)
            self.models[key] = fields
        elif name == "DeleteModel":
            self.models.pop(key, None)
        elif name == "RenameModel":
            self.models[str(_literal(arguments.get("new_name"))).lower()] = self.models.pop(key, {})
        elif name in ("AddField", "AlterField", "RemoveField", "RenameField"):
            fields = self.models.setdefault(key, {})
            field = str(_literal(arguments.get("name", arguments.get("old_name")))).lower()
            if name == "RemoveField":
                fields.pop(field, None)
            elif name == "RenameField":
                moved = fields.pop(field, None)
                if moved is not None:
                    fields[str(_literal(arguments.get("new_name"))).lower()] = moved
            else:
                fields[field] = Field(arguments.get("field"), self.names)

    # Each of these handles one kind of operation.

    def harmless(self, name, model, arguments):
        return _widens()

    def create_model(self, name, model, arguments):
        return Result(loses="the rows of %s" % model)

    def delete_model(self, name, model, arguments):
        return _narrows("the old code still uses the table of %s" % model, firm=True, loses="the rows of %s" % model)

    def rename_table(self, name, model, arguments):
        return _narrows("the old code still uses the table of %s by its old name" % model, firm=True)

    def remove_field(self, name, model, arguments):
        field = _literal(arguments.get("name"), "?")
        reason = "the old code still selects the column %s of %s" % (field, model)
        return _narrows(reason, firm=True, loses="the values of %s.%s" % (model, field))

    def rename_field(self, name, model, arguments):
        old = _literal(arguments.get("old_name"), "?")
        return _narrows("the old code still uses %s.%s by its old name" % (model, old), firm=True)

    def remove_index(self, name, model, arguments):
        return _widens("waits for an exclusive lock on the table of %s briefly" % model)

    def add_index(self, name, model, arguments):
        return _widens(
            "blocks writes to the table of %s while the index is built; AddIndexConcurrently does not" % model
        )

    def add_constraint(self, name, model, arguments):
        reads = "reads the complete table of %s while it blocks reads and writes" % model
        warnings = () if name == "AddConstraintNotValid" else (reads,)
        return _narrows("rows that the old code writes to %s may break the constraint" % model, *warnings)

    def together(self, name, model, arguments):
        key = "unique_together" if name == "AlterUniqueTogether" else "index_together"
        node = arguments.get(key)
        value = _literal(node, Unknown)
        empty_set = isinstance(node, ast.Call) and _dotted(node.func) == "set" and not node.args
        if key == "index_together":
            return _widens("blocks writes to the table of %s while an index is built" % model)
        if empty_set or value is None or (value is not Unknown and not value):
            return _widens()
        return _narrows(
            "rows that the old code writes to %s may break the uniqueness" % model,
            "builds a unique index on the table of %s under a lock" % model,
        )

    def order(self, name, model, arguments):
        if _literal(arguments.get("order_with_respect_to"), Unknown) is None:
            return _narrows("the old code still uses the column _order of %s" % model, firm=True)
        return _narrows(
            "it adds the column _order to %s, NOT NULL and without a default in the database, "
            "so INSERTs of the old code fail" % model
        )

    def remove_collation(self, name, model, arguments):
        return Result(CONTRACT, "the old code may still use the collation")

    def run_sql(self, name, model, arguments):
        if self.names.full(arguments.get("sql")).endswith("RunSQL.noop"):
            return Result()
        return self._unknown("SQL", arguments.get("reverse_sql"))

    def run_python(self, name, model, arguments):
        result = self._unknown("code", arguments.get("reverse_code"))
        if self.names.full(arguments.get("code")).endswith("RunPython.noop"):
            return Result(reversible=result.reversible)
        return result

    def _unknown(self, what, reverse):
        reversible = reverse is not None and _literal(reverse, Unknown) is not None
        return Result(CONTRACT, "what its %s does is not known without an annotation" % what, reversible=reversible)

    def add_field(self, name, model, arguments):
        field = Field(arguments.get("field"), self.names)
        label = "%s.%s" % (model, _literal(arguments.get("name"), "?"))
        loses = "the values of %s" % label
        if field.kind == "ManyToManyField":
            return _widens(loses=loses)  # A table of its own, or none.
        if field.kind == "GenericRelation":
            return Result()
        warnings = []
        if field.indexed():
            warnings.append("blocks writes to the table of %s while the index of %s is built" % (model, label))
        if field.kind in ("ForeignKey", "OneToOneField") and field.value("db_constraint", True):
            warnings.append("locks the table that %s refers to against writes briefly" % label)
        if field.kind == "GeneratedField":
            warnings.append("rewrites the table of %s while nobody can read or write it" % model)
        if field.kind == "GeneratedField" or field.value("null", False) is True:
            return _widens(*warnings, loses=loses)
        if field.has("db_default") and field.readable:
            if field.value("unique", field.kind == "OneToOneField"):
                reason = "every row that the old code inserts into %s gets the same value in the unique column %s"
                return _narrows(reason % (model, label), *warnings, loses=loses)
            if field.value("db_default") is Unknown:
                warnings.append("rewrites the table of %s if db_default is a volatile expression" % model)
            return _widens(*warnings, loses=loses)
        reason = "whether %s may be NULL cannot be read"
        if field.readable and field.value("null", False) is not Unknown:
            reason = "%s is NOT NULL and has no db_default, so INSERTs of the old code fail"
        return _narrows(reason % label, *warnings, loses=loses)

    def alter_field(self, name, model, arguments):
        label = "%s.%s" % (model, _literal(arguments.get("name"), "?"))
        new = Field(arguments.get("field"), self.names)
        old = self.models.get(model.lower(), {}).get(str(_literal(arguments.get("name"))).lower())
        if old is None:
            return _narrows("what %s was before cannot be read, so the change may narrow it" % label)
        reasons, warnings = compare_fields(old, new, label, model)
        return _narrows("; ".join(reasons), *warnings) if reasons else _widens(*warnings)


def compare_fields(old: Field, new: Field, label: str, model: str):
    """Return why a changed field breaks the old code (nothing: it only widens), and what the change locks."""
    reasons, warnings = [], []
    if not (old.readable and new.readable):
        return ["the definition of %s is not written out, so the change may narrow it" % label], []
    same_kind = old.path.rsplit(".", 1)[-1] == new.path.rsplit(".", 1)[-1]
    if not same_kind:
        if not (old.kind and new.kind and new.kind in WIDENS.get(old.kind, ())):
            return ["%s changes from %s to %s" % (label, old.name, new.name)], []
        if new.kind.startswith("Big") or "Integer" in new.kind or "AutoField" in new.kind:
            warnings.append("rewrites the table of %s while nobody can read or write it" % model)
    for argument in sorted(set(old.arguments) | set(new.arguments)):
        # What cannot be compared raises, whichever argument it is.
        differs = argument not in PYTHON_ONLY and old.dump(argument) != new.dump(argument)
        if differs and argument not in WITH_DEFAULTS:
            reasons.append("%s changes its %s" % (label, argument))
    before, after = (f.value("max_length", DEFAULT_LENGTH.get(f.kind or "")) for f in (old, new))
    if new.kind != "TextField" and before != after:
        if Unknown in (before, after):
            reasons.append("how long %s may be cannot be read" % label)
        elif before is None or (after is not None and after < before):
            reasons.append("%s gets shorter (max_length %s to %s)" % (label, before, after))
    before, after = old.value("null", False), new.value("null", False)
    if Unknown in (before, after):
        reasons.append("whether %s may be NULL cannot be read" % label)
    elif before and not after:
        reasons.append("%s becomes NOT NULL, and the old code may write NULL" % label)
        warnings.append("reads the complete table of %s while nobody can read or write it" % model)
    before, after = (f.value("unique", f.kind == "OneToOneField") for f in (old, new))
    if Unknown in (before, after):
        reasons.append("whether %s is unique cannot be read" % label)
    elif after and not before:
        reasons.append("%s becomes unique, and the old code may write duplicates" % label)
        warnings.append("builds a unique index on the table of %s under a lock" % model)
    if new.indexed() == "index" and not old.indexed():
        warnings.append("blocks writes to the table of %s while the index of %s is built" % (model, label))
    if old.has("db_default") and not new.has("db_default") and not new.value("null", False):
        reasons.append("%s loses its db_default, so INSERTs of a code that leaves it to the database fail" % label)
    if new.value("db_constraint", True) and not old.value("db_constraint", True):
        reasons.append("%s gets a foreign key constraint" % label)
    digits = [(f.value("max_digits"), f.value("decimal_places")) for f in (old, new)]
    if digits[0] != digits[1]:
        (digits_before, places_before), (digits_after, places_after) = digits
        numbers = all(isinstance(n, int) for pair in digits for n in pair)
        if not numbers or places_after < places_before or digits_after - places_after < digits_before - places_before:
            reasons.append("%s holds fewer digits" % label)
    return reasons, warnings


# ------------------------------------------------------------------------------------------------------ reading files


def literal_list(node, names, depth=0) -> Optional[list]:
    """Return the elements of a list that is written out; None where some of it is computed."""
    if node is None or isinstance(node, ast.Constant) and node.value is None:
        return []
    if isinstance(node, (ast.List, ast.Tuple)):
        elements = []
        for element in node.elts:
            if isinstance(element, ast.Starred):
                inner = literal_list(element.value, names, depth + 1)
                if inner is None:
                    return None
                elements.extend(inner)
            else:
                elements.append(element)
        return elements
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and depth < 20:
        left, right = literal_list(node.left, names, depth + 1), literal_list(node.right, names, depth + 1)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.Name) and depth < 20:
        value = names.lists.get(node.id)
        return None if value is None else literal_list(value, names, depth + 1)
    return None


def _pairs(node, names) -> list:
    pairs = []
    for element in literal_list(node, names) or ():
        value = _literal(element)
        if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(part, str) for part in value):
            pairs.append([value[0], value[1]])
        elif isinstance(element, ast.Call) and names.full(element.func).endswith("swappable_dependency"):
            pairs.append(["swappable", (names.full(element.args[0]) if element.args else "").rsplit(".", 1)[-1]])
    return pairs


class File:
    """One migration file, parsed."""

    def __init__(self, app: str, name: str, text: str, path: str = ""):
        self.app, self.name, self.path = app, name, path
        self.problems = []  # Why it cannot be trusted: each makes it a contract migration.
        self.dependencies, self.replaces, self.operations, self.annotations = [], [], [], []
        self.atomic, self.names = True, None
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self.problems.append("the file cannot be parsed (%s)" % (getattr(error, "msg", None) or error))
            return
        try:
            self._read(tree, text)
        except RecursionError:
            self.refuse("the file is nested too deeply to be read")

    def refuse(self, problem):
        """Take what was read of the file as nothing."""
        self.problems.append(problem)
        self.operations, self.annotations, self.names = [], [], None

    def _read(self, tree, text):
        self.names = Names(tree)
        self._comments(text)
        found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Migration"]
        if len(found) != 1:
            self.problems.append("the file does not define the class Migration exactly once")
            return
        self._class(found[0])
        self._external(tree)

    def _comments(self, text):
        try:
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type == tokenize.COMMENT:
                    match = ANNOTATION.match(token.string)
                    if match:
                        self.annotations.append(match.group("value").strip().lower())
        except (tokenize.TokenError, SyntaxError, IndentationError):
            self.problems.append("the comments of the file cannot be read")

    def _class(self, node):
        if [self.names.full(base) for base in node.bases] not in (
            ["django.db.migrations.Migration"],
            ["django.db.migrations.migration.Migration"],
        ):
            self.problems.append("its class does not inherit from django.db.migrations.Migration alone")
        for statement in node.body:
            if isinstance(statement, ast.Assign):
                targets, value = statement.targets, statement.value
            elif isinstance(statement, ast.AnnAssign):
                targets, value = [statement.target], statement.value
            else:
                text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                if not text and not isinstance(statement, ast.Pass):
                    self.problems.append("its class holds code next to plain assignments (line %d)" % statement.lineno)
                continue
            for target in targets:
                if isinstance(target, ast.Name):
                    self._attribute(target.id, value)

    def _attribute(self, name, value):
        if name == "operations":
            operations = literal_list(value, self.names)
            if operations is None:
                self.problems.append("its list of operations is computed, so it cannot be read")
            else:
                self.operations = operations
        elif name == "dependencies":
            self.dependencies = _pairs(value, self.names)
        elif name == "replaces":
            self.replaces = _pairs(value, self.names)
            entries = literal_list(value, self.names)
            if entries is None or len(entries) != len(self.replaces):
                self.problems.append("its list of replaced migrations is computed, so it cannot be read")
        elif name == "atomic":
            self.atomic = bool(_literal(value, True))
        elif name == "shiftmaster_class":
            self.annotations.append(str(_literal(value, "not a literal")).strip().lower())

    def _external(self, tree):
        """Find code that changes the class from outside, as `Migration.operations.append(...)`."""
        for node in ast.walk(tree):
            target = None
            if isinstance(node, (ast.Assign, ast.AugAssign)):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            elif isinstance(node, ast.Call):
                target = node.func
            if target is not None and (_dotted(target) or "").startswith("Migration."):
                self.problems.append("code outside the class changes it (line %d)" % node.lineno)


def _worst(classes: Iterable[str]) -> str:
    return max(classes, key=CLASSES.index, default=EXPAND)


def worst_class(records: Iterable[dict]) -> str:
    """Return the gravest class among records."""
    return _worst(record["class"] for record in records)


def _label(operation) -> str:
    return ("%s %s" % (operation["operation"], operation["target"])).strip()


def _evaluate(file: File, models: Models) -> dict:
    """Turn a parsed file into a record; changes models to what they are after it."""
    operations = []
    if file.names is not None:
        reader = Reader(file.names, models)
        try:
            reader.read(file.operations)
            operations = reader.records
        except RecursionError:
            file.refuse("the file is nested too deeply to be read")
    fields = ("app", "name", "path", "atomic", "dependencies", "replaces", "problems")
    record = {field: getattr(file, field) for field in fields}
    loses = [operation["loses"] for operation in operations if operation["loses"]]
    record.update(annotation=None, operations=operations, loses=loses)
    _classify(record, file.annotations, set())
    return record


def _classify(record: dict, annotations: list, created: set) -> None:
    """Set class, reversible and reasons of a record from its operations, problems and annotations."""
    reasons, classes, warnings, firm = list(record["problems"]), [CONTRACT] * len(record["problems"]), [], []
    for operation in record["operations"]:
        klass, new = operation["class"], operation["model"] and operation["model"] in created
        if operation["if_new"] is not None and new:
            klass = operation["if_new"]
        else:
            warnings.extend("%s: %s" % (_label(operation), warning) for warning in operation.get("warnings", ()))
        classes.append(klass)
        if klass != EXPAND:
            reasons.append("%s: %s" % (_label(operation), operation["reason"]))
        if operation["firm"] and not new and operation["class"] != EXPAND:
            firm.append(_label(operation))
    klass = _worst(classes)
    reversible = all(operation["reversible"] for operation in record["operations"]) and not record.get("no_reverse")
    wrong = sorted({value for value in annotations if value not in CLASSES})
    right = {value for value in annotations if value in CLASSES}
    if wrong:
        klass = _worst((klass, CONTRACT))
        reasons.append("its annotation %s is none of %s" % (", ".join(repr(w) for w in wrong), ", ".join(CLASSES)))
    elif right:
        record["annotation"] = annotation = _worst(right)
        if annotation != EXPAND:
            reasons.append("its annotation is %s" % annotation)
            klass = _worst((klass, annotation))
            reversible = reversible and annotation != IRREVERSIBLE
        elif firm:
            ignored = "its annotation says expand, which is ignored: %s removes something that the old code uses"
            reasons.append(ignored % ", ".join(firm))
        else:
            klass, reasons = EXPAND, []
    if klass == CONTRACT and not reversible:
        klass = IRREVERSIBLE
    if not reversible:
        reasons.append("it has no reverse code" if record["annotation"] != IRREVERSIBLE else "it cannot be unapplied")
    record["class"], record["reversible"], record["reasons"] = klass, reversible, reasons
    if not record["atomic"]:
        warnings.append("runs outside a transaction: if it fails, what it did before stays")
    record["annotations"], record["warnings"] = list(annotations), warnings


def relative(records: Iterable[dict], order: Optional[list] = None) -> List[dict]:
    """Evaluate a set of migrations together, against code that knows none of them.

    A field added to a model that the same set creates harms nobody: the old code does not know the table. Records
    must be in the order in which they are applied. Returns new records.
    """
    created, result = {}, []
    for record in records:
        fresh = dict(record)
        known = created.setdefault(record["app"], set())
        _classify(fresh, record.get("annotations", []), known)
        for operation in record["operations"]:
            if operation["operation"] == "CreateModel" and operation["model"]:
                known.add(operation["model"])
        if "found_in" in record and record["found_in"] is None:
            fresh.update({key: record[key] for key in ("class", "reversible", "reasons")})
        result.append(fresh)
    return result


def _ordered(files: Dict[str, File], replaced: Mapping[str, list]) -> List[File]:
    """Sort an app's files so that each comes after those of the same app that it depends on.

    A file that depends on a squashed one comes after the ones that it replaces (replaced).
    """
    done, begun, result = set(), set(), []
    # Each is taken once: the product of files and of what they replace would fill the memory.
    left = dict(replaced)
    for first in sorted(files):
        # No recursion: a chain may be longer than Python's stack.
        path = [first]
        while path:
            name = path[-1]
            if name in begun:
                path.pop()
                if name not in done:
                    done.add(name)
                    result.append(files[name])
                continue
            begun.add(name)
            own = [one for app, one in files[name].dependencies if app == files[name].app]
            wanted = own + [part for one in own for part in left.pop(one, ())]
            path.extend(one for one in reversed(wanted) if one in files and one not in begun)
    return result


def classify_app(app: str, texts: Mapping[str, str], paths: Optional[Mapping[str, str]] = None) -> List[dict]:
    """Evaluate all migrations of one app: {name: text of the file} → records, in order."""
    files, left = {}, MAX_APP_BYTES
    for name, text in texts.items():
        left -= len(text)
        files[name] = File(app, name, text if left >= 0 else "", (paths or {}).get(name, ""))
        if left < 0:
            files[name].refuse("the migrations of its app are larger than %d MiB" % (MAX_APP_BYTES >> 20))
    replaced = {
        name: [part for of, part in file.replaces if of == app and part in files] for name, file in files.items()
    }
    squashed = {name: parts for name, parts in replaced.items() if parts}
    models, plain = {}, {name: file for name, file in files.items() if name not in squashed}
    records = [_evaluate(file, models) for file in _ordered(plain, squashed)]
    # A squashed one starts from what was before, which is not followed: strict.
    return records + [_evaluate(files[name], {}) for name in sorted(squashed)]


# Other modules in a directory of this name (Django's own db/migrations, helpers) are no migrations.
# Of one line: a pattern that crosses lines takes a day for a megabyte of empty ones.
DEFINES_MIGRATION = re.compile(r"[^\S\n]*class Migration\b|Migration[^\S\n]*=")
APP_LABEL = re.compile(r"^[^\S\n]+label[^\S\n]*(?::[^=\n]+)?=[^\S\n]*['\"](?P<label>\w+)['\"]", re.MULTILINE)


def _defines_migration(text: str) -> bool:
    for line in text.split("\n"):
        if DEFINES_MIGRATION.match(line):
            return True
        before, name, after = line.rpartition("Migration")
        if name and not after.strip() and re.search(r"\W\Z", before) and re.search(r"\bimport\b", before):
            return True
    return False


def _app_label(directory: str, apps_text: Optional[str]) -> str:
    match = APP_LABEL.search(apps_text) if apps_text else None
    return match.group("label") if match else directory


def classify_files(files: Mapping[str, str]) -> List[dict]:
    """Evaluate the migrations among files given as {path: text}, as from `git archive`.

    Give apps.py files too where an app sets its label there. A later path of the same app and name is left out.
    """
    apps, paths = {}, {}
    for path in sorted(files, key=lambda p: (p.count("/"), p)):
        match = MIGRATION_PATH.search("/" + path)
        if not match or any(part in SKIPPED_FOLDERS for part in path.split("/")[:-1]):
            continue
        if not _defines_migration(files[path]):
            continue
        directory = path.rsplit("/", 2)[0] if path.count("/") >= 2 else ""
        app = _app_label(match.group("directory"), files.get("%s/apps.py" % directory))
        if match.group("name") in apps.setdefault(app, {}):
            continue
        apps[app][match.group("name")] = files[path]
        paths.setdefault(app, {})[match.group("name")] = path
    return [record for app in sorted(apps) for record in classify_app(app, apps[app], paths[app])]


# Names of codecs that take linear time. punycode takes a day for a megabyte.
ENCODINGS = ("utf-8", "utf-8-sig", "ascii", "iso8859-1", "iso8859-15", "cp1252", "cp932", "shift_jis", "euc_jp")


def decode(data: bytes) -> str:
    """Decode a source file as Python would; one of an encoding that is not in ENCODINGS cannot be parsed."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if codecs.lookup(encoding).name not in ENCODINGS:
            # It counts as a migration: another decoding might hide that it is one.
            return "Migration = \0"
        return data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return data.decode("utf-8", "replace")


def wanted(path: str) -> bool:
    """Whether classify_files has use for a path (to read only these from an archive)."""
    return bool(MIGRATION_PATH.search("/" + path)) or path.endswith("/apps.py")


def read_tree(source_dir: str, skip=SKIPPED_FOLDERS) -> Dict[str, str]:
    """Read the migration files and apps.py files below a directory, which is no link; no link is followed."""
    files, left = {}, MAX_TREE_BYTES
    root = os.path.abspath(str(source_dir))
    try:
        for directory, directories, names, descriptor in safe_files.walk(root, beneath=os.path.dirname(root)):
            directories[:] = sorted(name for name in directories if name not in skip)
            inside = os.path.basename(directory) == "migrations"
            for name in names:
                if left < 0:
                    return files
                if name == "apps.py" or (inside and name.endswith(".py")):
                    with contextlib.suppress(OSError):
                        with os.fdopen(safe_files.open_in(descriptor, name), "rb") as stream:
                            text = stream.read(MAX_FILE_BYTES + 1)
                        left -= len(text)
                        if len(text) <= MAX_FILE_BYTES and left >= 0:
                            files[os.path.normpath(os.path.join(directory, name))] = decode(text)
    except OSError:
        return {}  # It is not there, or a link.
    return files


def classify_tree(source_dir: str) -> List[dict]:
    """Evaluate all migrations below a directory, for the manifest of a release."""
    return classify_files(read_tree(source_dir))


# ------------------------------------------------------------------------------------- what the database is ahead by


def key(migration) -> str:
    """Name a migration as people and Django do: app.name."""
    pair = (migration["app"], migration["name"]) if isinstance(migration, Mapping) else migration
    return "%s.%s" % (pair[0], pair[1])


def compare_state(
    applied: Iterable[dict], known: Iterable[dict], replaces: Optional[Mapping] = None, tolerated: Iterable[str] = ()
) -> dict:
    """Compare rows of django_migrations with the files of a release.

    applied: [{app, name}]; known: [{app, name, replaces: [[app, name]]}] of the release; replaces: the same fact for
    migrations that the release does not know, {"app.name": ["app.name", ...]}; tolerated: rows that were there while
    the release was live.
    Returns {"ahead": [{app, name}], "unapplied": [{app, name}]} in the order given.
    """
    applied, known = list(applied), list(known)
    rows = {key(row) for row in applied}
    files = {key(migration): {key(pair) for pair in migration.get("replaces") or ()} for migration in known}
    covered = set(files).union(tolerated, *files.values())
    ahead = []
    for row in applied:
        if key(row) in covered:
            continue
        parts = set((replaces or {}).get(key(row), ()))
        if parts and parts <= covered | (rows - {key(row)}):
            continue  # A squashed migration: its parts are evaluated one by one.
        ahead.append({"app": row["app"], "name": row["name"]})
    there = rows.union(*(replaced for name, replaced in files.items() if name in rows))
    there |= {name for name, replaced in files.items() if replaced and replaced <= rows}
    unapplied = [{"app": one["app"], "name": one["name"]} for one in known if key(one) not in there]
    return {"ahead": ahead, "unapplied": unapplied}


def _manifest(release: str) -> dict:
    try:
        with open(os.path.join(release, "manifest.json"), encoding="utf-8") as stream:
            manifest = json.load(stream)
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _usable(record) -> bool:
    return (
        isinstance(record, dict)
        and record.get("class") in CLASSES
        and all(field in record for field in ("app", "name", "reversible", "reasons", "operations", "problems"))
    )


def _site_packages(release: str) -> List[str]:
    """Return the directories of a release's packages; a link of its build leads nowhere."""
    found = [os.path.join(release, "venv")]
    for pattern in ("lib*", "python*", "site-packages"):
        found = [
            os.path.join(parent, name) for parent in found for name in fnmatch.filter(_names(parent, release), pattern)
        ]
    return found


def _names(directory: str, beneath: str) -> List[str]:
    try:
        descriptor = safe_files.open_directory(directory, beneath=beneath)
    except OSError:
        return []
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


class Releases:
    """The migrations of the retained releases, read on first use; the newest release is queried first."""

    def __init__(self, releases_root: str):
        try:
            names = sorted(os.listdir(releases_root), reverse=True)
        except OSError:
            names = []
        self.paths = [
            os.path.join(releases_root, name)
            for name in names
            if os.path.isdir(os.path.join(releases_root, name)) and not name.startswith(".")
        ]
        self._records = {}

    def _sources(self, release):
        yield "manifest", lambda: [r for r in _manifest(release).get("migrations") or () if _usable(r)]
        yield "source", lambda: classify_tree(os.path.join(release, "source"))
        yield "venv", lambda: [one for path in _site_packages(release) for one in classify_files(read_tree(path))]

    def records(self, release: str, kind: str, read) -> Dict[str, dict]:
        if (release, kind) not in self._records:
            self._records[release, kind] = {key(record): record for record in read()}
        return self._records[release, kind]

    def find(self, wanted_key: str) -> Optional[dict]:
        """Return the record of a migration with found_in, the name of the release that holds it."""
        for position in range(3):  # All manifests first: they are quick to read.
            for release in self.paths:
                kind, read = list(self._sources(release))[position]
                record = self.records(release, kind, read).get(wanted_key)
                if record is not None:
                    return dict(record, found_in=os.path.basename(release))
        return None


def classify_ahead(ahead: Iterable, releases_root: str, releases: Optional[Releases] = None) -> List[dict]:
    """Find the class of migrations that the target release does not hold, in all retained releases.

    ahead: [{app, name}] or [(app, name)] in the order in which they were applied. One whose file is nowhere comes
    back as irreversible with found_in None.
    """
    releases = releases or Releases(releases_root)
    records = []
    for migration in ahead:
        record = releases.find(key(migration))
        if record is None:
            app, _, name = key(migration).partition(".")
            reasons = ["no retained release holds its file, so what it did is not known"]
            record = _evaluate(File(app, name, ""), {})
            record.update(
                {"class": IRREVERSIBLE, "found_in": None, "reversible": False, "problems": [], "reasons": reasons}
            )
        records.append(record)
    return relative(records)


def plan(response: Mapping) -> List[dict]:
    """Evaluate what is pending, from the response of the driver's operation `plan` with sources; in order."""
    known = {}
    for app, texts in response.get("sources", {}).items():
        known.update((key(record), record) for record in classify_app(app, texts))
    records = []
    for migration in response["pending"]:
        record = dict(known.get(key(migration)) or _evaluate(File(migration["app"], migration["name"], ""), {}))
        record["atomic"] = migration["atomic"]
        # Django knows better than a reader whether an operation can be reversed.
        record["no_reverse"] = not all(operation["reversible"] for operation in migration["operations"])
        record["describe"] = [operation["describe"] for operation in migration["operations"]]
        records.append(record)
    return relative(records)


def compare(
    response: Mapping, releases_root: str, tolerated: Iterable[str] = (), releases: Optional[Releases] = None
) -> dict:
    """Return whether the code of a release can run on the database as it is.

    response: {applied, known}, from the driver's operation `plan` inside that release.
    Returns ahead (records), unapplied ([{app, name}]), safe_to_rollback and reason.
    """
    releases = releases or Releases(releases_root)
    known = {key(migration) for migration in response["known"]}
    replaces = {}
    for row in response["applied"]:
        if key(row) not in known:
            record = releases.find(key(row))
            if record and record["replaces"]:
                replaces[key(row)] = [key(pair) for pair in record["replaces"]]
    state = compare_state(response["applied"], response["known"], replaces, tolerated)
    ahead = classify_ahead(state["ahead"], releases_root, releases)
    safe, reason = rollback_result(ahead)
    return {"ahead": ahead, "unapplied": state["unapplied"], "safe_to_rollback": safe, "reason": reason}


def known_statically(release_dir: str) -> List[dict]:
    """List a release's migrations from its manifest and files, for when its code cannot be run."""
    path = str(release_dir).rstrip("/")
    found = {}
    for _, read in Releases(os.path.dirname(path))._sources(path):
        for record in read():
            found.setdefault(key(record), {field: record[field] for field in ("app", "name", "replaces")})
    return [found[name] for name in sorted(found)]


def applied_when_live(release_dir: str) -> List[str]:
    """Return the rows that a release lived with, where its manifest reports it."""
    value = _manifest(str(release_dir)).get("applied_when_live")
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def describe(records: Iterable[dict]) -> str:
    """Name migrations with their class, for a sentence."""
    return ", ".join("%s (%s)" % (key(record), record["class"]) for record in records)


def _explained(records: Iterable[dict]) -> str:
    return "; ".join("%s (%s: %s)" % (key(one), one["class"], ", ".join(one["reasons"])) for one in records)


def rollback_result(ahead: Iterable[dict]) -> Tuple[bool, str]:
    """Return whether code may go back while the schema stays, and why, in a sentence that a person understands."""
    ahead = list(ahead)
    if not ahead:
        return True, "The database holds no migration that this release does not know."
    lost = [record for record in ahead if record.get("found_in", "") is None]
    bad = [record for record in ahead if record["class"] != EXPAND and record.get("found_in", "") is not None]
    if not lost and not bad:
        return True, (
            "The database is ahead by %s, which only add: the older code works with them, and the schema "
            "stays." % describe(ahead)
        )
    parts = []
    if bad:
        parts.append("the older code may not work with %s" % _explained(bad))
    if lost:
        names = ", ".join(map(key, lost))
        parts.append("no retained release holds the file of %s, so what it did is not known" % names)
    stuck = [key(record) for record in ahead if not record["reversible"]]
    if stuck:
        parts.append("%s cannot be unapplied" % ", ".join(stuck))
    return False, "The code alone cannot go back: %s." % "; ".join(parts)


def deploy_result(pending: Iterable[dict], allow_contract=False, first_deploy=False) -> Tuple[bool, str]:
    """Return whether pending migrations may be applied, and why."""
    pending = list(pending)
    if not pending:
        return True, "No migration is pending."
    bad = [record for record in pending if record["class"] != EXPAND]
    if not bad:
        return True, "%d pending, which only add: %s." % (len(pending), describe(pending))
    if first_deploy:
        return True, "%d pending; no release is live, so every class is allowed." % len(pending)
    if allow_contract:
        return True, "%d pending, contract migrations were allowed: %s." % (len(pending), describe(bad))
    return False, (
        "The live code now may not work after %s. A release that only adds, and a later one that removes, "
        "need no maintenance page." % _explained(bad)
    )

"""How migrations are evaluated from their text."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from ansible.module_utils.shiftmaster.release import migrations

HEAD = "from django.db import migrations, models\nimport django.contrib.postgres.operations as pg\n%s\n"
CLASS = "class Migration(migrations.Migration):\n    dependencies = [%s]\n%s    operations = [%s]\n"
INITIAL = """
    migrations.CreateModel("Roster", fields=[
        ("id", models.BigAutoField(primary_key=True)),
        ("month", models.CharField("month", max_length=7)),
        ("title", models.CharField(max_length=50, null=True)),
        ("hours", models.DecimalField(max_digits=5, decimal_places=2)),
        ("count", models.IntegerField(default=0)),
        ("code", models.SlugField(unique=True)),
        ("state", models.CharField(max_length=9, db_default="new")),
        ("ward", models.ForeignKey("staff.Ward", models.CASCADE)),
    ]),
"""


def text(operations, before="", extra="", comment=""):
    dependency = '("shifts", %r)' % before if before else ""
    return HEAD % comment + CLASS % (dependency, extra, operations)


def evaluate(operations, extra="", comment="", **more):
    """Return the record of a second migration on top of INITIAL."""
    files = {"0001_initial": text(INITIAL), "0002_it": text(operations, "0001_initial", extra, comment)}
    files.update(more)
    return {record["name"]: record for record in migrations.classify_app("shifts", files)}["0002_it"]


EXPAND = [
    'migrations.CreateModel("Leave", [("id", models.BigAutoField(primary_key=True))])',
    'migrations.AddField("roster", "note", models.TextField(null=True))',
    'migrations.AddField(model_name="roster", name="note", field=models.TextField(db_default=""))',
    'migrations.AddField("roster", "tags", models.ManyToManyField("staff.Tag"))',
    'migrations.AddField("roster", "sum", models.GeneratedField(expression=models.F("count"), db_persist=True))',
    'migrations.AddIndex("roster", models.Index(fields=["month"], name="m"))',
    'pg.AddIndexConcurrently("roster", models.Index(fields=["month"], name="m"))',
    "pg.TrigramExtension()",
    'migrations.RemoveIndex("roster", "m")',
    'migrations.RemoveConstraint("roster", "c")',
    'migrations.AlterModelOptions("roster", {"ordering": ["month"]})',
    'migrations.AlterModelTableComment("roster", "of a month")',
    'migrations.AlterUniqueTogether("roster", set())',
    "migrations.RunSQL(migrations.RunSQL.noop, migrations.RunSQL.noop)",
    "migrations.RunPython(migrations.RunPython.noop, migrations.RunPython.noop)",
    'migrations.SeparateDatabaseAndState(state_operations=[migrations.RemoveField("roster", "month")])',
    'migrations.AlterIndexTogether("roster", {("month", "title")})',
    # AlterField where what was before is known.
    'migrations.AlterField("roster", "month", models.CharField("month", max_length=9))',
    'migrations.AlterField("roster", "month", models.CharField("the month", max_length=7, help_text="x"))',
    'migrations.AlterField("Roster", "month", models.TextField())',
    'migrations.AlterField("roster", "hours", models.DecimalField(max_digits=7, decimal_places=3))',
    'migrations.AlterField("roster", "hours", models.DecimalField(max_digits=6, decimal_places=2))',
    'migrations.AlterField("roster", "hours", models.DecimalField(max_digits=6, decimal_places=3))',
    'migrations.AlterField("roster", "count", models.BigIntegerField(default=0))',
    'migrations.AlterField("roster", "count", models.IntegerField(default=1, db_default=0))',
    'migrations.AlterField("roster", "code", models.SlugField())',
    'migrations.AlterField("roster", "ward", models.ForeignKey("staff.Ward", models.PROTECT, related_name="r"))',
    # A field of a table that no other code knows yet.
    'migrations.CreateModel("Leave", []), migrations.AddField("leave", "day", models.DateField())',
    'migrations.CreateModel("Leave", []), migrations.AlterUniqueTogether("leave", {("a", "b")})',
    '*[migrations.AddIndex("roster", models.Index(fields=["month"], name="m"))]',
]
CONTRACT = [
    ('migrations.AddField("roster", "day", models.DateField())', "INSERTs of the old code fail"),
    ('migrations.AddField("roster", "day", models.IntegerField(default=3), preserve_default=False)', "no db_default"),
    ('migrations.AddField("roster", "day", models.DateField(null=NULLABLE))', "cannot be read"),
    ('migrations.AddField("roster", "day", models.DateField(**WHAT))', "cannot be read"),
    ('migrations.AddField("roster", "u", models.IntegerField(unique=True, db_default=1))', "same value"),
    ('migrations.RemoveField("roster", "month")', "still selects the column month"),
    ('migrations.DeleteModel("Roster")', "table of Roster"),
    ('migrations.RenameField("roster", "month", "period")', "by its old name"),
    ('migrations.RenameModel("Roster", "Plan")', "by its old name"),
    ('migrations.AlterModelTable("roster", "plans")', "by its old name"),
    ('migrations.AddConstraint("roster", models.UniqueConstraint(fields=["month"], name="u"))', "may break"),
    ('migrations.AlterUniqueTogether("roster", {("month", "title")})', "uniqueness"),
    ('migrations.AlterOrderWithRespectTo("roster", "ward")', "_order"),
    ('migrations.AlterOrderWithRespectTo("roster", None)', "still uses the column _order"),
    ('pg.RemoveCollation("c", "de")', "may still use the collation"),
    ('migrations.AlterField("roster", "month", models.CharField(**WHAT))', "is not written out"),
    ('migrations.AlterField("roster", "month", models.CharField(*WHAT))', "is not written out"),
    ('migrations.AlterField("roster", "month", models.CharField("m", "month"))', "is not written out"),
    (
        'migrations.AddField("roster", "w", models.ForeignKey("staff.Ward", models.CASCADE, db_constraint=False, '
        'null=True)), migrations.AlterField("roster", "w", models.ForeignKey("staff.Ward", models.CASCADE, null=True))',
        "gets a foreign key constraint",
    ),
    ('migrations.RunSQL("SELECT 1", "SELECT 2")', "without an annotation"),
    ("migrations.RunPython(forwards, backwards)", "without an annotation"),
    ('migrations.AlterField("roster", "month", models.CharField(max_length=6))', "gets shorter"),
    ('migrations.AlterField("roster", "month", models.CharField(max_length=LENGTH))', "how long"),
    ('migrations.AlterField("roster", "month", models.IntegerField())', "from CharField to IntegerField"),
    ('migrations.AlterField("roster", "hours", models.DecimalField(max_digits=5, decimal_places=3))', "fewer digits"),
    ('migrations.AlterField("roster", "hours", models.DecimalField(max_digits=9, decimal_places=1))', "fewer digits"),
    ('migrations.AlterField("roster", "hours", models.DecimalField(max_digits=4, decimal_places=2))', "fewer digits"),
    ('migrations.AlterField("roster", "hours", models.DecimalField(max_digits=N, decimal_places=2))', "fewer digits"),
    ('migrations.AlterField("roster", "ward", models.ForeignKey("staff.Team", models.CASCADE))', "changes its to"),
    ('migrations.AlterField("roster", "elsewhere", models.TextField())', "cannot be read"),
    ('migrations.SeparateDatabaseAndState(database_operations=[migrations.RemoveField("roster", "month")])', "selects"),
    ("migrations.SeparateDatabaseAndState(database_operations=some())", "cannot be read"),
    ('custom.AddField("roster", "note", models.TextField(null=True))', "AddField is not one of Django's own"),
    ("OPERATIONS[0]()", "an operation is not one of Django's own"),
    ("OPERATION", "not written as a call"),
    ("migrations.AddField(*WHAT)", "not written out"),
]


@pytest.mark.parametrize("operations", EXPAND)
def test_expand(operations):
    record = evaluate(operations)
    assert (record["class"], record["reasons"]) == ("expand", [])
    assert record["reversible"]


@pytest.mark.parametrize(("operations", "reason"), CONTRACT)
def test_contract(operations, reason):
    record = evaluate(operations)
    assert record["class"] == "contract" and record["reversible"]
    assert reason in "; ".join(record["reasons"])


@pytest.mark.parametrize(
    "operations",
    [
        'migrations.RunSQL("SELECT 1")',
        'migrations.RunSQL("SELECT 1", None)',
        "migrations.RunPython(forwards)",
        "migrations.RunPython(code=forwards, reverse_code=None)",
        'migrations.AddField("roster", "note", models.TextField(null=True)), migrations.RunPython(forwards)',
    ],
)
def test_irreversible(operations):
    record = evaluate(operations)
    assert record["class"] == "irreversible" and not record["reversible"]
    assert "it has no reverse code" in record["reasons"]


def test_the_gravest_operation_decides():
    record = evaluate(
        'migrations.AddField("roster", "note", models.TextField(null=True)), migrations.RemoveField("roster", "month")'
    )
    assert record["class"] == "contract" and len(record["reasons"]) == 1
    assert [operation["class"] for operation in record["operations"]] == ["expand", "contract"]


@pytest.mark.parametrize(
    ("comment", "extra"),
    [("# shiftmaster: expand", ""), ("#shiftmaster:EXPAND ", ""), ("", '    shiftmaster_class = "expand"\n')],
)
def test_an_annotation_decides_what_cannot_be_known(comment, extra):
    record = evaluate("migrations.RunPython(fill)", extra, comment)
    assert record["class"] == "expand" and record["annotation"] == "expand"
    assert not record["reversible"] and record["reasons"] == ["it has no reverse code"]


ADD = 'migrations.AddField("roster", "note", models.TextField(null=True))'
SQL = 'migrations.RunSQL("SELECT 1", "SELECT 2")'


@pytest.mark.parametrize(
    ("operations", "comment", "extra", "kind", "reason"),
    [
        (ADD, "contract", "", "contract", ""),
        (SQL, "irreversible", "", "irreversible", ""),
        (SQL, "expand", '    shiftmaster_class = "contract"\n', "contract", ""),
        (ADD, "expnad", "", "contract", "'expnad'"),
    ],
    ids=["graver", "irreversible", "the stricter of two", "wrong"],
)
def test_an_annotation_makes_no_migration_safer(operations, comment, extra, kind, reason):
    record = evaluate(operations, extra, "# shiftmaster: " + comment)
    assert record["class"] == kind and record["reversible"] == (kind != "irreversible")
    assert reason in "".join(record["reasons"][:1])


def test_an_annotation_in_a_string_is_ignored():
    assert evaluate('migrations.RunSQL("SELECT 1 -- # shiftmaster: expand", "SELECT 2")')["class"] == "contract"


@pytest.mark.parametrize(
    "operations",
    [
        'migrations.RemoveField("roster", "month")',
        'migrations.DeleteModel("Roster")',
        'migrations.RenameField("roster", "month", "period")',
        'migrations.RenameModel("Roster", "Plan")',
    ],
)
def test_expand_is_not_trusted_where_the_old_code_names_what_goes(operations):
    record = evaluate(operations, comment="# shiftmaster: expand")
    assert record["class"] == "contract" and "which is ignored" in "; ".join(record["reasons"])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def broken(:", "cannot be parsed"),
        ("x = 1\n", "does not define the class Migration"),
        (HEAD % "" + "class Migration(migrations.Migration):\n    operations = make()\n", "is computed"),
        (HEAD % "" + "class Migration(migrations.Migration):\n    operations = [x for x in y]\n", "is computed"),
        (
            HEAD % "" + "class Migration(migrations.Migration):\n    operations = []\n    operations += [1]\n",
            "holds code",
        ),
        (
            HEAD % "" + "class Migration(migrations.Migration):\n    operations = []\n    def a(self): pass\n",
            "holds code",
        ),
        *(
            (
                HEAD % "" + f"class Migration(migrations.Migration):\n    replaces = {value}\n    operations = []\n",
                "list of replaced migrations is computed",
            )
            for value in ("make()", "[('shifts', '0001'), make()]")
        ),
        (HEAD % "" + CLASS % ("", "", "") + "Migration.operations.append(x)\n", "outside the class"),
        (HEAD % "" + CLASS % ("", "", "") + "Migration.operations = x\n", "outside the class"),
        (HEAD % "from other import Base" + "class Migration(Base):\n    operations = []\n", "does not inherit"),
    ],
)
def test_an_unreadable_migration_is_a_contract(source, reason):
    record = migrations.classify_app("shifts", {"0001_it": source})[0]
    assert record["class"] == "contract" and reason in "; ".join(record["reasons"])


def test_lists_that_are_added_up_are_read():
    source = HEAD % "MORE = [migrations.DeleteModel('A')]" + (
        "class Migration(migrations.Migration):\n    operations = [migrations.DeleteModel('B')] + MORE + [*MORE]\n"
    )
    assert len(migrations.classify_app("shifts", {"0001": source})[0]["operations"]) == 3


def test_facts_of_a_migration():
    source = HEAD % "from django.conf import settings" + (
        "class Migration(migrations.Migration):\n    atomic = False\n    replaces = [('shifts', '0001')]\n"
        "    dependencies = [('auth', '0012'), migrations.swappable_dependency(settings.AUTH_USER_MODEL)]\n"
        "    operations = []\n"
    )
    record = migrations.classify_app("shifts", {"0002": source})[0]
    assert not record["atomic"] and record["replaces"] == [["shifts", "0001"]]
    assert record["dependencies"] == [["auth", "0012"], ["swappable", "AUTH_USER_MODEL"]]
    assert "outside a transaction" in record["warnings"][0]


@pytest.mark.parametrize(
    ("operations", "warning"),
    [
        ('migrations.AddIndex("roster", models.Index(fields=["month"], name="m"))', "blocks writes"),
        ('migrations.AddField("roster", "w", models.ForeignKey("staff.Ward", models.CASCADE, null=True))', "refers to"),
        ('migrations.AlterField("roster", "count", models.BigIntegerField(default=0))', "rewrites"),
        (
            'migrations.AddConstraint("roster", models.CheckConstraint(condition=models.Q(), name="c"))',
            "complete table",
        ),
        ('migrations.AddField("roster", "w", models.UUIDField(db_default=RandomUUID()))', "volatile"),
        ('migrations.RemoveIndex("roster", "m")', "exclusive lock"),
        ('migrations.AlterUniqueTogether("roster", {("month", "title")})', "unique index"),
        ('migrations.AlterIndexTogether("roster", {("month", "title")})', "blocks writes"),
        ('migrations.AlterField("roster", "month", models.CharField(max_length=7, unique=True))', "unique index"),
    ],
)
def test_locks_of_a_table_are_reported(operations, warning):
    assert warning in "; ".join(evaluate(operations)["warnings"])


@pytest.mark.parametrize(
    "operations",
    [
        'pg.AddIndexConcurrently("roster", models.Index(fields=["month"], name="m"))',
        'migrations.CreateModel("Leave", []), migrations.AddIndex("leave", models.Index(fields=["a"], name="m"))',
    ],
)
def test_operations_without_a_lock_are_not_reported(operations):
    assert evaluate(operations)["warnings"] == []


def test_names_follow_renames():
    files = {
        "0001_initial": text(INITIAL),
        "0002_rename": text(
            'migrations.RenameModel("Roster", "Plan"), migrations.RenameField("plan", "month", "p")', "0001_initial"
        ),
        "0003_wider": text('migrations.AlterField("plan", "p", models.CharField(max_length=20))', "0002_rename"),
    }
    assert migrations.classify_app("shifts", files)[2]["class"] == "expand"


def test_order_is_that_of_the_dependencies_not_of_the_names():
    files = {
        "0002_initial": text(INITIAL),
        "0001_less": text('migrations.AlterField("roster", "month", models.CharField(max_length=3))', "0002_initial"),
    }
    records = migrations.classify_app("shifts", files)
    assert [record["name"] for record in records] == ["0002_initial", "0001_less"]
    assert "7 to 3" in records[1]["reasons"][0]


def test_a_squashed_migration_does_not_hide_what_was_before():
    squashed = text(INITIAL.replace("max_length=7", "max_length=3")).replace(
        "    operations", "    replaces = [('shifts', '0001_initial'), ('shifts', '0002_it')]\n    operations"
    )
    record = evaluate(
        'migrations.AlterField("roster", "month", models.CharField(max_length=3))', **{"0001_squashed": squashed}
    )
    assert record["class"] == "contract"


def test_a_squashed_migration_is_not_compared_with_what_came_after_it():
    squashed = text('migrations.AlterField("roster", "month", models.CharField("month", max_length=7))').replace(
        "    operations", "    replaces = [('shifts', '0002_it')]\n    operations"
    )
    files = {"0001_initial": text(INITIAL), "0002_it": text("", "0001_initial"), "0002_squashed": squashed}
    records = {record["name"]: record for record in migrations.classify_app("shifts", files)}
    assert records["0002_squashed"]["class"] == "contract"


def test_dependants_of_a_squashed_migration_come_after_the_replaced_ones():
    squashed = text(INITIAL).replace("    operations", "    replaces = [('shifts', '0002_initial')]\n    operations")
    wider = text('migrations.AlterField("roster", "month", models.CharField(max_length=9))', "0002_squashed")
    files = {"0001_wider": wider, "0002_initial": text(INITIAL), "0002_squashed": squashed}
    records = {record["name"]: record for record in migrations.classify_app("shifts", files)}
    assert records["0001_wider"]["class"] == "expand"
    assert records["0001_wider"]["dependencies"] == [["shifts", "0002_squashed"]]


def test_database_operations_leave_the_state_alone_and_state_operations_change_it():
    alter = 'migrations.AlterField("roster", "month", models.CharField(max_length=%d))'
    separate = "migrations.SeparateDatabaseAndState([%s], [%s]), %s"
    assert evaluate(separate % (alter % 20, "", alter % 10))["class"] == "expand"
    assert evaluate(separate % ("", alter % 20, alter % 10))["class"] == "contract"


def test_a_set_is_evaluated_against_code_that_knows_none_of_it():
    files = {
        "0001_initial": text('migrations.CreateModel("Leave", [])'),
        "0002_day": text('migrations.AddField("leave", "day", models.DateField())', "0001_initial"),
        "0003_data": text("migrations.RunPython(fill, back)", "0002_day"),
    }
    records = migrations.classify_app("shifts", files)
    assert [r["class"] for r in records] == ["expand", "contract", "contract"]
    assert [r["class"] for r in migrations.relative(records)] == ["expand", "expand", "contract"]
    assert [r["class"] for r in migrations.relative(records[1:])] == ["contract", "contract"]


def test_files_of_an_archive():
    files = {
        "site/shifts/migrations/0001_initial.py": text(INITIAL),
        "site/shifts/migrations/__init__.py": "",
        "site/shifts/migrations/_helpers.py": text(INITIAL),
        "site/shifts/migrations/tools.py": "def help(): pass\n",
        "site/shifts/apps.py": 'class C(AppConfig):\n    name = "site.shifts"\n    label = "duty"\n',
        "venv/lib/python3.13/site-packages/x/migrations/0001_initial.py": text(INITIAL),
        "病棟/migrations/0001_初期.py": text(INITIAL),
        "README.md": "",
    }
    records = migrations.classify_files(files)
    assert [migrations.key(record) for record in records] == ["duty.0001_initial", "病棟.0001_初期"]
    assert records[0]["path"] == "site/shifts/migrations/0001_initial.py"
    assert migrations.wanted("a/migrations/0001.py") and migrations.wanted("a/apps.py")
    assert not migrations.wanted("a/migrations/__init__.py") and not migrations.wanted("apps.txt")


def test_a_tree_with_odd_files(tmp_path):
    directory = tmp_path / "shifts" / "migrations"
    directory.mkdir(parents=True)
    (directory / "0001_initial.py").write_bytes(
        b"# -*- coding: shift_jis -*-\n" + ("# 病棟\n" + text(INITIAL)).encode("shift_jis")
    )
    (directory / "0002_bytes.py").write_bytes(b"class Migration: # \xff\xfe\x00")
    (directory / "0003_link.py").symlink_to("/etc/passwd")
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)))
    records = migrations.classify_tree(str(tmp_path))
    assert [(r["name"], r["class"]) for r in records] == [("0001_initial", "expand"), ("0002_bytes", "contract")]


def test_an_encoding_that_needs_a_day_is_not_decoded():
    source = b"# coding: punycode\nclass Migration: pass\n" + b"x" * 200_000 + b"-" + b"a" * 200_000
    began = time.process_time()
    [record] = migrations.classify_files({"shift/migrations/0001_x.py": migrations.decode(source)})
    assert time.process_time() - began < 2
    assert record["class"] == "contract" and "cannot be parsed" in record["problems"][0]


def test_files_times_what_they_replace_do_not_fill_the_memory():
    parts = ['("shift", "%04d")' % number for number in range(300)]
    files = {"shift/migrations/%04d.py" % number: "class Migration: pass" for number in range(300)}
    files["shift/migrations/s.py"] = text("", extra="    replaces = [%s]\n" % ", ".join(parts))
    files["shift/migrations/z.py"] = text("", extra="    dependencies = [%s]\n" % (3000 * '("shift", "s"),'))
    tracemalloc.start()
    try:
        assert len(migrations.classify_files(files)) == 302
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_lists_are_followed_to_a_limit_through_names_sums_and_stars():
    lines = ["b0 = [1]", *("b%d = b%d" % (number, number - 1) for number in range(1, 21))]
    lines += ["own = [*own]", "twice = [1]", "twice = [2]", "s = (3,)"]
    names = migrations.Names(migrations.ast.parse("\n".join(lines)))

    def found(text):
        elements = migrations.literal_list(migrations.ast.parse(text, mode="eval").body, names)
        return elements if elements is None else [one.value for one in elements]

    assert found("[1, *s, *b3]") == [1, 3, 1] and found("s + [4]") == [3, 4] and found("None") == []
    assert migrations.literal_list(None, names) == []
    assert found("b19") == [1] and found("b20") is None
    assert found("+".join(["[1]"] * 20)) == [1] * 20 and found("+".join(["[1]"] * 22)) is None
    for text in ("own", "twice", "unknown", "[*f()]", "[1] + f()", "f() + [1]", "[1] * 2", "f()", "5"):
        assert found(text) is None, text


def test_names_are_those_that_were_imported():
    names = migrations.Names(
        migrations.ast.parse(
            "import a.b\nimport c.d as e\nfrom f import g, h as i\nfrom . import j\n"
            "from .k import m\nfrom .. import n as o\n"
        )
    )
    assert names.imports == {"a": "a", "e": "c.d", "g": "f.g", "i": "f.h", "j": "..j", "m": ".k.m", "o": "..n"}

    def node(text):
        return migrations.ast.parse(text, mode="eval").body

    assert [names.full(node(text)) for text in ("e.x.y", "i", "other.z", "f()")] == ["c.d.x.y", "f.h", "other.z", ""]
    names.imports["models"] = "django.db.models"
    assert names.django(node("models.CharField")) == "CharField" and names.django(node("e.CharField")) is None


@pytest.mark.parametrize(
    ("operation", "target"),
    [
        ('migrations.CreateModel("Leave", [])', "Leave"),
        ('migrations.DeleteModel("Roster")', "Roster"),
        ('migrations.RenameModel("Roster", "Plan")', "Roster"),
        ('migrations.AlterModelTable("Roster", "x")', "Roster"),
        ('migrations.AddField("roster", "x", models.TextField(null=True))', "roster.x"),
        ('migrations.RemoveField("roster", "month")', "roster.month"),
        ('migrations.AlterField("roster", "month", models.TextField())', "roster.month"),
        ('migrations.RenameField("roster", "month", "x")', "roster.month"),
        ('migrations.RemoveIndex("roster", "i")', "roster.i"),
        ('pg.RemoveIndexConcurrently("roster", "i")', "roster.i"),
        ('migrations.RenameIndex("roster", "new", "old")', "roster.old"),
        ('migrations.RemoveConstraint("roster", "c")', "roster.c"),
        ('migrations.AlterConstraint("roster", "c", constraint)', "roster.c"),
        ('pg.ValidateConstraint("roster", "c")', "roster.c"),
        ('migrations.AddIndex("roster", models.Index(name="i"))', "roster (i)"),
        ('pg.AddIndexConcurrently("roster", models.Index(name="i"))', "roster (i)"),
        ('migrations.AddConstraint("roster", models.CheckConstraint(name="c"))', "roster (c)"),
        ('pg.AddConstraintNotValid("roster", models.CheckConstraint(name="c"))', "roster (c)"),
        ('migrations.AddConstraint("roster", made())', "roster"),
        ('pg.CreateExtension("hstore")', ""),
        ('migrations.RunSQL("SELECT 1")', ""),
    ],
)
def test_an_operation_names_what_it_changes_by_place_and_by_keyword(operation, target):
    record = evaluate(operation)["operations"][0]
    assert (record["operation"], record["target"]) == (operation.partition("(")[0].partition(".")[2], target)


@pytest.mark.parametrize(("value", "goes"), [("None", True), ('"ward"', False)])
def test_an_added_order_is_distinguished_from_a_removed_one(value, goes):
    """No annotation makes an expand of what the old code still uses."""
    (record,) = evaluate('migrations.AlterOrderWithRespectTo("roster", %s)' % value)["operations"]
    assert record["firm"] == goes


def field(text):
    names = migrations.Names(migrations.ast.parse("from django.db import models"))
    return migrations.Field(migrations.ast.parse(text, mode="eval").body, names)


def test_arguments_of_a_field_are_read_by_place_and_by_keyword():
    found = field('models.CharField("the month", max_length=LENGTH)')
    assert (found.kind, found.path, found.name) == ("CharField", "django.db.models.CharField", "CharField")
    assert found.readable and found.value("verbose_name") == "the month" and found.has("max_length")
    assert found.value("max_length") is migrations.Unknown and not migrations.Unknown
    assert found.value("null", 5) == 5 and found.dump("null") is None and "LENGTH" in found.dump("max_length")
    for kind in ("ForeignKey", "OneToOneField", "ManyToManyField"):
        found = field('models.%s("staff.Ward", models.CASCADE)' % kind)
        assert found.readable and found.value("to") == "staff.Ward" and "CASCADE" in found.dump("on_delete")
        assert not field('models.%s("staff.Ward", models.CASCADE, 3)' % kind).readable
    for text in ('models.CharField("m", "month")', "models.CharField(*WHAT)", "models.CharField(**WHAT)", "FIELD"):
        assert not field(text).readable
    assert field("FIELD").name == "a field" and field("own.Field()").kind is None and field("own.F()").name == "F"


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("models.CharField()", ""), ("models.CharField(unique=True)", "unique"), ("models.SlugField()", "index"),
        ("models.IntegerField(primary_key=True)", "unique"), ("models.CharField(db_index=True)", "index"),
        ('models.OneToOneField("a.B")', "unique"), ('models.ForeignKey("a.B")', "index"),
        ('models.ForeignKey("a.B", db_index=False)', ""), ('models.ForeignKey("a.B", unique=True)', "unique"),
    ],
)  # fmt: skip
def test_the_index_of_a_field(text, index):
    assert field(text).indexed() == index


RANGES = {
    "SmallIntegerField": (-(2**15), 2**15), "IntegerField": (-(2**31), 2**31), "BigIntegerField": (-(2**63), 2**63),
    "PositiveSmallIntegerField": (0, 2**15), "PositiveIntegerField": (0, 2**31), "PositiveBigIntegerField": (0, 2**63),
}  # fmt: skip
TEXTS = ("SlugField", "EmailField", "URLField", "FilePathField")


def compared(old, new):
    return migrations.compare_fields(field("models.%s" % old), field("models.%s" % new), "a.b", "a")


def test_a_type_widens_to_those_that_contain_all_its_values():
    for old, (least, most) in RANGES.items():
        for new, (lower, upper) in RANGES.items():
            reasons, warnings = compared(old + "()", new + "()")
            fits = lower <= least and most <= upper
            assert (reasons == []) == fits, (old, new)
            assert any("rewrites the table" in one for one in warnings) == (fits and old != new)
    for old, new in (
        ("SmallAutoField", "AutoField"),
        ("SmallAutoField", "BigAutoField"),
        ("AutoField", "BigAutoField"),
    ):
        assert compared(old + "()", new + "()") == ([], ["rewrites the table of a while nobody can read or write it"])
        assert compared(new + "()", old + "()")[0]
    for old in (*TEXTS, "CharField"):
        assert compared(old + "(max_length=9)", "TextField()") == ([], [])
        assert compared("TextField()", old + "(max_length=9)")[0]
    for old in TEXTS:
        assert compared(old + "(max_length=9)", "CharField(max_length=9)") == ([], [])
        assert compared("CharField(max_length=9)", old + "(max_length=9)")[0]
    assert compared("FileField()", "ImageField()") == compared("ImageField()", "FileField()") == ([], [])


@pytest.mark.parametrize(
    ("kind", "length"),
    [("SlugField", 50), ("EmailField", 254), ("URLField", 200), ("FilePathField", 100), ("FileField", 100),
     ("ImageField", 100)],
)  # fmt: skip
def test_a_type_has_djangos_length_where_none_is_written(kind, length):
    assert compared(kind + "()", "%s(max_length=%d)" % (kind, length)) == ([], [])
    assert "gets shorter" in compared(kind + "()", "%s(max_length=%d)" % (kind, length - 1))[0][0]
    assert "gets shorter" in compared("%s(max_length=%d)" % (kind, length + 1), kind + "()")[0][0]


@pytest.mark.parametrize(
    ("old", "new", "shorter"),
    [("max_length=9", "max_length=9", False), ("max_length=9", "max_length=10", False), ("max_length=9", "", False),
     ("", "max_length=9", True), ("max_length=9", "max_length=8", True)],
)  # fmt: skip
def test_a_text_without_a_length_is_longer_than_any(old, new, shorter):
    assert bool(compared("CharField(%s)" % old, "CharField(%s)" % new)[0]) == shorter


@pytest.mark.parametrize(
    ("old", "new", "reason", "warning"),
    [
        ("null=True", "", "becomes NOT NULL", "reads the complete table"),
        ("", "null=True", "", ""),
        ("", "unique=True", "becomes unique", "builds a unique index"),
        ("unique=True", "", "", ""),
        ("", "db_index=True", "", "blocks writes"),
        ("db_index=True", "", "", ""),
        ("unique=True", "db_index=True", "", ""),
        ("db_default=1", "", "loses its db_default", ""),
        ("db_default=1", "null=True", "", ""),
        ("db_default=1", "db_default=2", "", ""),
        ("db_constraint=False", "", "gets a foreign key constraint", ""),
        ("", "db_constraint=False", "", ""),
        ("", 'db_column="x"', "changes its db_column", ""),
        ('help_text="x"', 'help_text="y", choices=CHOICES', "", ""),
        ("null=NULL", "null=True", "may be NULL cannot be read", ""),
        ("null=NULL", "null=NULL", "may be NULL cannot be read", ""),
        ("", "unique=U", "is unique cannot be read", ""),
    ],
)
def test_breakage_and_locks_of_a_changed_field(old, new, reason, warning):
    reasons, warnings = compared("IntegerField(%s)" % old, "IntegerField(%s)" % new)
    assert len(reasons) == bool(reason) and len(warnings) == bool(warning)
    assert reason in "".join(reasons) and warning in "".join(warnings)


@pytest.mark.parametrize(
    ("new", "klass", "warnings", "loses"),
    [
        ('django.contrib.contenttypes.fields.GenericRelation("a.B")', "expand", [], ""),
        ('models.ManyToManyField("a.B")', "expand", [], "values"),
        ("models.TextField(null=True)", "expand", [], "values"),
        ("models.TextField(null=True, db_index=True)", "expand", ["blocks writes"], "values"),
        (
            'models.ForeignKey("a.B", models.CASCADE, null=True)',
            "expand",
            ["blocks writes", "locks the table"],
            "values",
        ),
        ('models.ForeignKey("a.B", null=True, db_index=False, db_constraint=False)', "expand", [], "values"),
        ('models.GeneratedField(expression="x", db_persist=True)', "expand", ["rewrites the table"], "values"),
        ("models.IntegerField(db_default=1)", "expand", [], "values"),
        ("models.IntegerField(db_default=NOW)", "expand", ["db_default is a volatile"], "values"),
        ("models.IntegerField(db_default=1, unique=True)", "contract", ["blocks writes"], "values"),
        ("models.IntegerField()", "contract", [], "values"),
    ],
)
def test_locks_and_data_loss_of_an_added_field(new, klass, warnings, loses):
    record = evaluate('migrations.AddField("roster", "x", %s)' % new)
    (operation,) = record["operations"]
    assert record["class"] == operation["class"] == klass
    assert len(operation["warnings"]) == len(warnings)
    assert all(one in output for one, output in zip(warnings, operation["warnings"]))
    assert operation["loses"] == ("the values of roster.x" if loses else "")

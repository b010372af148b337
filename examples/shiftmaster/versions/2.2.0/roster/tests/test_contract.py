from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.test import TransactionTestCase

BEFORE, AFTER = ("roster", "0002_minimum_staff_kind_summary"), ("roster", "0003_remove_is_night")


def migrate(target):
    executor = MigrationExecutor(connection)
    executor.migrate([target])
    return executor.loader.project_state([target]).apps.get_model("roster", "ShiftType").objects


class ContractTests(TransactionTestCase):
    def test_forward_fills_the_kind_and_backward_the_column(self):
        types = migrate(BEFORE)
        for code, night, kind in (("a", True, ""), ("b", False, ""), ("c", True, "night"), ("d", False, "day")):
            types.create(code=code, name=code, is_night=night, kind=kind)
        kinds = dict(migrate(AFTER).values_list("code", "kind"))
        self.assertEqual(kinds, {"a": "night", "b": "day", "c": "night", "d": "day"})
        nights = dict(migrate(BEFORE).values_list("code", "is_night"))
        self.assertEqual(nights, {"a": True, "b": False, "c": True, "d": False})
        migrate(AFTER)

from datetime import date, timedelta
from unittest import mock

from django.test import Client, TestCase, override_settings
from django.utils import timezone
from kombu.exceptions import OperationalError

from roster.models import Assignment, DayOffRequest, MonthPlan

from .example import MONTH, Example

PAGE = f"/roster/east/{MONTH}/"


class ReadTests(Example, TestCase):
    def test_every_page_asks_for_a_login(self):
        for address in ("/", PAGE, "/roster/east/", "/requests/"):
            self.assertRedirects(self.client.get(address), f"/login/?next={address}", fetch_redirect_response=False)

    def test_log_in_leads_to_the_page_that_was_asked_for(self):
        answer = self.client.post(f"/login/?next={PAGE}", {"username": "nurse", "password": "irrelevant-1234"})
        self.assertRedirects(answer, PAGE, fetch_redirect_response=False)

    def test_home_orders_the_wards_and_counts_their_cells(self):
        for day in MONTH.days[:31]:
            Assignment.objects.create(staff=self.staff[0], day=day, shift=self.day)
        self.client.force_login(self.nurse)
        with mock.patch("roster.months.timezone.localdate", return_value=date(2026, 5, 20)):
            wards = self.client.get("/").context["wards"]
        self.assertEqual([(ward.slug, ward.people, ward.percent) for ward in wards], [("west", 1, 0), ("east", 3, 33)])

    def test_month_shows_shifts_and_wishes_with_few_queries(self):
        Assignment.objects.create(staff=self.staff[0], day=MONTH.first, shift=self.night)
        DayOffRequest.objects.create(staff=self.staff[0], day=MONTH.first)
        self.client.force_login(self.planner)
        self.client.get(PAGE)
        # The user, the ward, shift types, staff, cells, wishes, the plan. The session comes from the cache.
        with self.assertNumQueries(7):
            answer = self.client.get(PAGE)
        self.assertContains(answer, '<td class="wish-open"><button class="c indigo">N</button></td>', count=1)
        self.assertContains(answer, '<td><button class="c "></button></td>', count=3 * 31 - 1)

    def test_who_is_no_planner_sees_the_month_without_buttons(self):
        self.client.force_login(self.nurse)
        answer = self.client.get(PAGE)
        self.assertContains(answer, '<td><i class="c "></i></td>')
        self.assertNotContains(answer, 'id="assign"')

    def test_unknown_ward_and_months_out_of_range_are_not_found(self):
        self.client.force_login(self.planner)
        for address in ("/roster/none/2026-05/", "/roster/east/2026-13/", "/roster/east/1999-12/"):
            self.assertEqual(self.client.get(address).status_code, 404, address)
        for address in ("/roster/east/2000-01/", "/roster/east/2099-12/"):
            self.assertEqual(self.client.get(address).status_code, 200, address)


class LanguageTests(Example, TestCase):
    def test_japanese_by_default_and_english_by_header_or_choice(self):
        self.client.force_login(self.planner)
        self.assertContains(self.client.get(PAGE), "案を作成")
        english = self.client.get(PAGE, headers={"accept-language": "en-GB,en;q=0.9"})
        self.assertContains(english, "Build draft")
        self.assertContains(english, "East ward")
        self.client.post("/i18n/setlang/", {"language": "en"})
        self.assertContains(self.client.get(PAGE, headers={"accept-language": "ja"}), "Build draft")


class AssignTests(Example, TestCase):
    def setUp(self):
        self.client.force_login(self.planner)

    def assign(self, client=None, scripted=False, **fields):
        fields = {"staff": self.staff[0].pk, "day": "2026-05-03", "shift": "D", **fields}
        headers = {"x-requested-with": "fetch"} if scripted else {}
        return (client or self.client).post(f"{PAGE}assign/", fields, headers=headers)

    def cells(self):
        return list(Assignment.objects.values_list("staff__number", "day", "shift__code"))

    def test_saves_replaces_and_empties_a_cell(self):
        self.assertRedirects(self.assign(), PAGE, fetch_redirect_response=False)
        self.assertEqual(self.cells(), [("E0", date(2026, 5, 3), "D")])
        before = timezone.now()
        self.assign(shift="N")
        self.assertEqual(self.cells(), [("E0", date(2026, 5, 3), "N")])
        cell = Assignment.objects.get()
        self.assertEqual(cell.updated_by, self.planner)
        self.assertGreater(cell.updated_at, before)
        self.assign(shift="")
        self.assertEqual(self.cells(), [])

    def test_answers_the_script_in_json(self):
        answer = self.assign(scripted=True)
        self.assertEqual((answer.status_code, answer.json()), (200, {"code": "D", "tone": "sky"}))

    def test_refuses_what_does_not_fit_and_saves_nothing(self):
        for fields in (
            {"staff": self.stranger.pk},
            {"staff": 10**20},
            {"staff": "x"},
            {"day": "2026-06-01"},
            {"day": "soon"},
            {"shift": "?"},
        ):
            with self.subTest(fields):
                self.assertEqual(self.assign(**fields).status_code, 400)
                self.assertEqual(self.assign(scripted=True, **fields).status_code, 400)
        self.assertEqual(self.cells(), [])

    def test_only_planners_may_and_only_with_a_token(self):
        self.client.force_login(self.nurse)
        self.assertEqual(self.assign().status_code, 403)
        strict = Client(enforce_csrf_checks=True)
        strict.force_login(self.planner)
        self.assertEqual(self.assign(strict).status_code, 403)
        self.assertEqual(self.cells(), [])


class RequestTests(Example, TestCase):
    def test_ask_and_decide(self):
        day = timezone.localdate() + timedelta(days=5)
        self.client.force_login(self.nurse)
        self.client.post("/requests/", {"staff": self.staff[1].pk, "day": day.isoformat(), "reason": "卒業式"})
        self.assertContains(self.client.get("/requests/"), "卒業式")
        wish = DayOffRequest.objects.get()
        self.assertEqual(self.client.post(f"/requests/{wish.pk}/decide/", {"answer": "approved"}).status_code, 403)
        self.client.force_login(self.planner)
        self.client.post(f"/requests/{wish.pk}/decide/", {"answer": "approved"})
        wish.refresh_from_db()
        self.assertEqual(wish.state, "approved")

    def test_nobody_asks_for_somebody_else_or_twice(self):
        day = timezone.localdate() + timedelta(days=5)
        self.client.force_login(self.nurse)
        form = {"staff": self.staff[0].pk, "day": day.isoformat()}
        self.assertEqual(self.client.post("/requests/", form).status_code, 400)
        form["staff"] = self.staff[1].pk
        self.assertEqual(self.client.post("/requests/", form).status_code, 302)
        self.assertEqual(self.client.post("/requests/", form).status_code, 400)


class JobTests(Example, TestCase):
    def setUp(self):
        self.client.force_login(self.planner)

    def test_draft_is_ordered_and_its_state_told(self):
        self.client.post(f"{PAGE}draft/")
        plan = MonthPlan.objects.get()
        self.assertTrue(plan.drafting)
        self.assertEqual(self.client.get(f"{PAGE}draft/state/").json(), {"drafting": True})
        self.assertContains(self.client.get(PAGE), 'id="drafting"')
        from roster.tasks import build_draft

        build_draft(self.ward.pk, str(MONTH))
        self.assertEqual(self.client.get(f"{PAGE}draft/state/").json(), {"drafting": False})
        self.assertNotContains(self.client.get(PAGE), 'id="drafting"')

    def test_a_queue_that_is_away_is_said_on_the_page(self):
        with mock.patch("roster.tasks.build_draft.delay", side_effect=OperationalError("away")):
            answer = self.client.post(f"{PAGE}draft/", follow=True)
        self.assertContains(answer, "処理待ち行列が応答しません")
        self.assertFalse(MonthPlan.objects.get().drafting)

    @override_settings(EMAIL_HOST="")
    def test_mailing_without_a_mail_server_is_said_on_the_page(self):
        self.assertContains(self.client.post(f"{PAGE}mail/", follow=True), "メールサーバーが設定されていない")

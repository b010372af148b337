from unittest import mock

from django.contrib.auth import get_user_model
from django.core.cache.backends.locmem import LocMemCache
from django.test import TestCase
from redis.exceptions import ConnectionError as CacheIsAway


class SessionTests(TestCase):
    def test_a_cache_that_is_away_logs_nobody_out_and_lets_people_in(self):
        user = get_user_model().objects.create_user("somebody", password="irrelevant-1234")
        self.client.force_login(user)
        away = {name: mock.Mock(side_effect=CacheIsAway) for name in ("get", "set", "delete", "has_key")}
        with mock.patch.multiple(LocMemCache, **away):
            self.assertEqual(self.client.get("/").status_code, 200)
            self.client.post("/logout/")
            self.assertEqual(self.client.get("/").status_code, 302)
            form = {"username": "somebody", "password": "irrelevant-1234"}
            self.assertRedirects(self.client.post("/login/", form), "/")

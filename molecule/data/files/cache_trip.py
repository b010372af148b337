"""Every operation of Django's cache on the URL in CACHE_URL."""

import os

from django.conf import settings

settings.configure(
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": os.environ["CACHE_URL"],
            "OPTIONS": {"ssl_ca_certs": os.environ["CA_FILE"]} if "CA_FILE" in os.environ else {},
        }
    },
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
)

from django.contrib.sessions.backends.cache import SessionStore  # noqa: E402  after configure()
from django.core.cache import cache  # noqa: E402

cache.set("one", {"ward": 1}, 60)
assert cache.get("one") == {"ward": 1}
assert cache.add("one", 2) is False
cache.set("count", 1)
assert cache.incr("count") == 2
cache.set_many({"a": 1, "b": 2}, 60)
assert cache.get_many(["a", "b", "none"]) == {"a": 1, "b": 2}
assert cache.touch("a", 120)
assert cache.has_key("a")
assert cache.delete("a") and cache.get("a") is None
cache.delete_many(["b"])
session = SessionStore()
session["user"] = 7
session.save()
assert SessionStore(session.session_key)["user"] == 7
cache.clear()
assert cache.get("one") is None
print("cache trip done")

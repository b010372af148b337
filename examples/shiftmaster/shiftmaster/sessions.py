"""Sessions read from the cache and kept in the database, that also work while the cache is away.

Django's cached_db fails with the cache; a restart of Redis would be an error on every page.
"""

import logging

from django.contrib.sessions.backends import cached_db
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)


class Forgiving:
    """What a session store uses of a cache; a cache that does not answer is an empty one."""

    def __init__(self, cache):
        self.cache = cache

    def attempt(self, method, *arguments, otherwise=None):
        try:
            return getattr(self.cache, method)(*arguments)
        except RedisError as exc:
            logger.warning("the cache does not answer, sessions come from the database: %s", type(exc).__name__)
            return otherwise

    def get(self, key):
        return self.attempt("get", key)

    def set(self, key, value, timeout):
        self.attempt("set", key, value, timeout)

    def delete(self, key):
        return self.attempt("delete", key, otherwise=False)

    def __contains__(self, key):
        return self.attempt("has_key", key, otherwise=False)


class SessionStore(cached_db.SessionStore):
    # The keys in the cache stay those of cached_db.
    def __init__(self, session_key=None):
        super().__init__(session_key)
        self._cache = Forgiving(self._cache)

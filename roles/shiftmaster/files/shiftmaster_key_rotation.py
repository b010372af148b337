# Role shiftmaster; belongs to one release. While an earlier secret key is accepted, sessions that it has signed are
# signed again in place. Django itself gives such a session a new cookie, and the other tabs of that browser, whose
# requests are under way with the old one, are logged out.
from django.conf import settings
from django.contrib import auth
from django.utils.crypto import constant_time_compare

# Signatures of the current key are cached: they need no query. Django still validates each session itself.
_good = set()
_GOOD_LIMIT = 10000


class KeepSessions:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        if settings.SESSION_COOKIE_NAME in request.COOKIES:
            sign_again(request.session)
        return self.get_response(request)


def sign_again(session):
    signature = session.get(auth.HASH_SESSION_KEY)
    backend = session.get(auth.BACKEND_SESSION_KEY)
    if not signature or signature in _good or backend not in settings.AUTHENTICATION_BACKENDS:
        return
    number = auth.get_user_model()._meta.pk.to_python(session[auth.SESSION_KEY])
    user = auth.load_backend(backend).get_user(number)
    if user is None or not hasattr(user, "get_session_auth_fallback_hash"):
        return
    wanted = user.get_session_auth_hash()
    if constant_time_compare(signature, wanted):
        if len(_good) >= _GOOD_LIMIT:
            _good.clear()
        _good.add(signature)
    elif any(constant_time_compare(signature, earlier) for earlier in user.get_session_auth_fallback_hash()):
        session[auth.HASH_SESSION_KEY] = wanted

from django.urls import path, register_converter

from . import views
from .months import MonthConverter

register_converter(MonthConverter, "month")

app_name = "roster"
urlpatterns = [
    path("", views.home, name="home"),
    path("roster/<slug:ward>/", views.this_month, name="ward"),
    path("roster/<slug:ward>/<month:month>/", views.month, name="month"),
    path("roster/<slug:ward>/<month:month>/assign/", views.assign, name="assign"),
    path("roster/<slug:ward>/<month:month>/draft/", views.draft, name="draft"),
    path("roster/<slug:ward>/<month:month>/draft/state/", views.draft_state, name="draft-state"),
    path("roster/<slug:ward>/<month:month>/mail/", views.mail, name="mail"),
    path("roster/<slug:ward>/<month:month>/summarize/", views.summarize, name="summarize"),
    path("requests/", views.requests, name="requests"),
    path("requests/<int:pk>/decide/", views.decide, name="decide"),
]

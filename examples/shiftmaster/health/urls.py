from django.urls import path

from . import views

app_name = "health"
urlpatterns = [
    path("", views.light, name="light"),
    path("deep/", views.deep, name="deep"),
]

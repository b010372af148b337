from django.contrib import admin
from django.contrib.auth.views import LoginView
from django.urls import path
from shifts import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("login/", LoginView.as_view(), name="login"),
    path("", views.board),
    path("add/", views.add),
    path("export/", views.export),
    path("statistics/", views.statistics),
]

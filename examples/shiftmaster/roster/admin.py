from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from .models import Assignment, DayOffRequest, MonthPlan, ShiftType, StaffMember, TaskRun, Ward

admin.site.site_header = "ShiftMaster"
admin.site.site_title = "ShiftMaster"
admin.site.index_title = _("Administration")


@admin.register(Ward)
class WardAdmin(admin.ModelAdmin):
    list_display = ["name", "name_en", "slug", "position"]


@admin.register(StaffMember)
class StaffMemberAdmin(admin.ModelAdmin):
    list_display = ["number", "name", "ward", "grade", "active"]
    list_filter = ["ward", "grade", "active"]
    list_select_related = ["ward"]
    search_fields = ["number", "name", "name_en"]
    raw_id_fields = ["user"]


@admin.register(ShiftType)
class ShiftTypeAdmin(admin.ModelAdmin):
    list_display = ["code", "name", "starts_at", "ends_at", "is_work", "at_night"]


@admin.register(DayOffRequest)
class DayOffRequestAdmin(admin.ModelAdmin):
    list_display = ["day", "staff", "state", "reason"]
    list_filter = ["state"]
    list_select_related = ["staff"]
    date_hierarchy = "day"
    raw_id_fields = ["staff"]


@admin.register(Assignment)
class AssignmentAdmin(admin.ModelAdmin):
    list_display = ["day", "staff", "shift", "updated_at", "updated_by"]
    list_select_related = ["staff", "shift", "updated_by"]
    date_hierarchy = "day"
    raw_id_fields = ["staff", "updated_by"]


@admin.register(MonthPlan)
class MonthPlanAdmin(admin.ModelAdmin):
    list_display = ["ward", "month", "draft_asked_at", "draft_done_at"]
    list_select_related = ["ward"]


@admin.register(TaskRun)
class TaskRunAdmin(admin.ModelAdmin):
    list_display = ["key", "task", "started_at", "finished_at", "version", "redelivered", "effective"]
    list_filter = ["task", "effective"]
    search_fields = ["key"]

    def has_add_permission(self, request):
        return False

    def has_change_permission(self, request, obj=None):
        return False

from django import forms
from django.utils.translation import gettext as _

from .models import DayOffRequest, ShiftType, StaffMember


class AssignForm(forms.Form):
    """One cell of the grid: no shift empties it."""

    staff = forms.IntegerField()
    day = forms.DateField(input_formats=["%Y-%m-%d"])
    shift = forms.CharField(required=False, max_length=3)

    def __init__(self, *args, ward, month, **kwargs):
        super().__init__(*args, **kwargs)
        self.ward = ward
        self.month = month

    def clean_staff(self):
        try:
            return StaffMember.objects.get(pk=self.cleaned_data["staff"], ward=self.ward, active=True)
        except (StaffMember.DoesNotExist, OverflowError):
            raise forms.ValidationError(_("This person does not work on this ward.")) from None

    def clean_day(self):
        day = self.cleaned_data["day"]
        if not self.month.first <= day <= self.month.last:
            raise forms.ValidationError(_("This day is not in the month."))
        return day

    def clean_shift(self):
        code = self.cleaned_data["shift"]
        if not code:
            return None
        try:
            return ShiftType.objects.get(code=code)
        except ShiftType.DoesNotExist:
            raise forms.ValidationError(_("There is no such shift.")) from None


class DayOffForm(forms.ModelForm):
    class Meta:
        model = DayOffRequest
        fields = ["staff", "day", "reason"]
        widgets = {"day": forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")}

    def __init__(self, *args, user, **kwargs):
        super().__init__(*args, **kwargs)
        people = StaffMember.objects.filter(active=True)
        if not user.is_staff:
            people = people.filter(user=user)
        self.fields["staff"].queryset = people
        self.fields["staff"].initial = people.first()

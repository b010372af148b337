from .assignment import Assignment, DayOffRequest
from .plan import MailDelivery, MonthPlan, TaskRun
from .shift_type import ShiftType
from .staff import StaffMember
from .ward import Ward

__all__ = [
    "Assignment",
    "DayOffRequest",
    "MailDelivery",
    "MonthPlan",
    "ShiftType",
    "StaffMember",
    "TaskRun",
    "Ward",
]

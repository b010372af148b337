from .home import home, this_month
from .jobs import draft, draft_state, mail
from .month import assign, month
from .requests import decide, requests
from .summary import summarize

__all__ = [
    "assign",
    "decide",
    "draft",
    "draft_state",
    "home",
    "mail",
    "month",
    "requests",
    "summarize",
    "this_month",
]

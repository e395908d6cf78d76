"""Dates as they are shown to models and expected in answers, in English whatever the locale."""

from __future__ import annotations

from datetime import date

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def spell_date(day: date) -> str:
    """`2 March 2024`."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"

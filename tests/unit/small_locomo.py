"""A conversation in LoCoMo's format, for tests that may not use a real one."""

from __future__ import annotations

from typing import Any


def conversation() -> list[dict[str, Any]]:
    """Twelve turns, six observations, and a question about every turn."""
    turns = [
        {"dia_id": f"D1:{n}", "speaker": "Pia" if n % 2 else "Quin", "text": f"I saw bird number {n} today."}
        for n in range(1, 13)
    ]
    talk = {
        "speaker_a": "Pia",
        "speaker_b": "Quin",
        "session_1": turns,
        "session_1_date_time": "1:56 pm on 8 May, 2023",
    }
    asked = [
        {"question": f"Who saw bird {n}?", "answer": turns[n - 1]["speaker"], "category": 4, "evidence": [f"D1:{n}"]}
        for n in range(1, 13)
    ]
    seen = {"Pia": [[f"Pia saw bird {n}.", f"D1:{n}"] for n in range(1, 13, 2)]}
    return [{"sample_id": "conv-26", "conversation": talk, "qa": asked, "observation": {"session_1_observation": seen}}]

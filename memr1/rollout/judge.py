"""A language model that judges answers, behind any OpenAI-compatible endpoint. Used by evaluation and as a reward.

Judges are generous: how generous this one is stands beside its figures, see `leniency`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from memr1.errors import MemR1Error
from memr1.rewards.match import f1_set
from memr1.rollout.endpoint import Endpoint, EndpointConfig
from memr1.rollout.engine import SamplingParams

PROMPT = """You grade an answer to a question about earlier conversations. A reference answer is given.

Grade CORRECT when the answer states what the reference states, in whatever words, order, format of dates or length.
Grade WRONG when it contradicts the reference, leaves out something that the question asks for, names several
possibilities of which only one is right, or stays so vague that it would fit other references, too. When the reference
says that the information is not there, only an answer that says so is CORRECT.

Question: {question}
Reference: {gold}
Answer: {answer}

Reply with one JSON object and nothing else: {{"grade": "CORRECT"}} or {{"grade": "WRONG"}}."""

PROMPT_ID = hashlib.sha256(PROMPT.encode()).hexdigest()[:12]
"""Reported with every figure of a judge: figures under different prompts cannot be compared."""

TRIES = 3
"""Times that a judge is asked for a reply that can be read."""

VAGUE = "It is something that came up in one of their conversations."
"""An answer that is wrong for every question, because it would fit all of them."""

_GRADE = re.compile(r"\{[^{}]*\}")

Item = tuple[str, str, str]
"""(question, answer, gold)."""
Verdict = tuple[float | None, str | None]
"""1.0 or 0.0 and None; or None and why the judge gave no verdict."""


@dataclass(frozen=True)
class Leniency:
    """Share of deliberately wrong answers that a judge accepted; None where none could be judged."""

    swapped: float | None
    """Of answers that are the gold of another question."""
    vague: float | None
    """Of `VAGUE`."""
    questions: int
    """With a verdict on both, which the shares are of."""


class LLMJudge:
    """Asks the model of an endpoint, greedily, with `PROMPT`: `concurrency` answers at a time, equal items once."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self._endpoint = Endpoint(config)
        self._threads = ThreadPoolExecutor(config.concurrency, "judge")
        self._asked: dict[Item, Future[Verdict]] = {}

    def begin(self, question: str, answer: str, gold: str) -> None:
        """Ask about an answer without waiting for the verdict, which a later call then takes."""
        item = (question, answer, gold)
        if item not in self._asked:
            self._asked[item] = self._threads.submit(self._ask, item)

    def __call__(self, question: str, answer: str, gold: str) -> Verdict:
        """The verdict on one answer. A reply that cannot be read is asked for again, a server that fails is given up
        after its attempts; either way there is then no verdict."""
        self.begin(question, answer, gold)
        verdict: Verdict | None = None
        try:
            verdict = self._asked[question, answer, gold].result()
        finally:
            if verdict is None or verdict[0] is None:
                self._asked.pop((question, answer, gold), None)  # worth another try when it is asked again
        return verdict

    def verdicts(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts on many answers."""
        for item in items:
            self.begin(*item)
        found = {item: self(*item) for item in dict.fromkeys(items)}
        return [found[item] for item in items]

    def leniency(self, questions: Sequence[tuple[str, str]], most: int = 100) -> Leniency:
        """How generous the judge is. questions: (question, gold); at most `most` of them are used, evenly spread.

        The wrong answers are the gold of the next question that shares no token with a question's own gold, and
        `VAGUE`; without such a next question it is not asked about.
        """
        chosen = [questions[i * len(questions) // min(most, len(questions))] for i in range(min(most, len(questions)))]
        swapped: list[Item] = []
        for i, (question, gold) in enumerate(chosen):
            others = [other for _, other in (*chosen[i + 1 :], *chosen[:i]) if f1_set(other, gold) == 0.0]
            if others:
                swapped.append((question, others[0], gold))
        vague = [(question, VAGUE, gold) for question, _, gold in swapped]
        verdicts = [value for value, _ in self.verdicts([*swapped, *vague])]
        pairs = zip(verdicts[: len(swapped)], verdicts[len(swapped) :], strict=True)
        given = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not given:
            return Leniency(None, None, 0)
        shares = [sum(values) / len(given) for values in zip(*given, strict=True)]
        return Leniency(shares[0], shares[1], len(given))

    def close(self) -> None:
        """Close its connections, and end its threads as soon as they have their answers."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._endpoint.close()

    def _ask(self, item: Item) -> Verdict:
        question, answer, gold = item
        content = PROMPT.format(question=question, answer=answer, gold=gold)
        reply = ""
        for attempt in range(TRIES):
            try:
                sampling = SamplingParams(max_new_tokens=64, temperature=0.0, seed=attempt)
                reply, _ = self._endpoint.chat([{"role": "user", "content": content}], sampling)
            except MemR1Error as error:
                return None, str(error)
            grade = read_grade(reply)
            if grade is not None:
                return grade, None
        return None, f"{TRIES} replies could not be read; the last was {reply[:80]!r}"


def read_grade(reply: str) -> float | None:
    """1.0 or 0.0 of a reply that holds exactly one JSON object with a grade; None for prose and anything else."""
    grades = []
    for found in _GRADE.findall(reply):
        try:
            grades.append(json.loads(found).get("grade"))
        except (ValueError, AttributeError):
            continue
    return {"CORRECT": 1.0, "WRONG": 0.0}.get(str(grades[0]).upper()) if len(grades) == 1 else None

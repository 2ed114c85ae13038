"""Scores of a title: is it true of its product, does it sell it, does it read like the references, does it fit.

Libraries do the metrics (sacrebleu, rouge-score, jieba) and `adgen.finishing` says which words a product allows. A score
that a row cannot have (BLEU without a reference, agreement of numbers without numbers) is absent from it: whoever
aggregates counts those rows, and no NaN stands for them.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import regex

from adgen.config import FinishSettings
from adgen.evaluation.titles.bleu import sentence_bleu, written
from adgen.finishing.segmentation import segmenter
from adgen.finishing.titles import display_width, words
from adgen.finishing.wording import Wording, product_wording, stop_words

_HAN = regex.compile(r"\p{Han}")


class ProductTexts(NamedTuple):
    """What a product's row says of it."""

    title: str
    selling_points: tuple[str, ...] = ()
    brand: str | None = None
    locale: str | None = None

    @classmethod
    def of(cls, row: dict) -> "ProductTexts":
        """From a row of the products table; nulls are empty."""
        return cls(row["title"] or "", tuple(row["selling_points"] or ()), row.get("brand"), row.get("locale"))


def title_scores(
    title: str, references: Sequence[str | None], product: ProductTexts, finish: FinishSettings | None = None
) -> dict[str, float]:
    """Scores of one title, by the names of the table of scores. Shares and ROUGE-L are 0..1, BLEU 0..100, width in columns.

    Absent: bleu and rouge_l without a reference that has text, selling_point_coverage without selling points,
    number_unit_agreement of a title without numbers, allowed_words of one without words. An empty title has
    `title_empty` 1 and covers and matches nothing.
    """
    scores = _truth(title, product) | _lengths(title, finish or FinishSettings())
    if given := written(references):
        scores["bleu"] = sentence_bleu(title, given, product.locale)
        scores["rouge_l"] = rouge_l(title, given)
    return scores


# -- the product's own words -----------------------------------------------------------------------------------


def _truth(title: str, product: ProductTexts) -> dict[str, float]:
    texts = tuple(filter(None, (product.title, *product.selling_points, product.brand)))
    wording, tokens = product_wording(texts), words(title)
    scores = {"title_empty": float(not title.strip())}
    if tokens.words or tokens.runs:
        scores["allowed_words"] = wording.coverage(title)[0]
    if tokens.numbers:
        scores["number_unit_agreement"] = 1 - len(wording.unstated(tokens.numbers)) / len(tokens.numbers)
    if points := [point for point in product.selling_points if any(words(point))]:
        said = Wording.of((title,), stop_words())
        scores["selling_point_coverage"] = sum(_says(said, point) for point in points) / len(points)
    return scores


def _says(said: Wording, point: str) -> bool:
    """Whether a text holds all words and numbers of a selling point, in whatever order."""
    return said.coverage(point)[0] == 1 and not said.unstated(words(point).numbers)


def _lengths(title: str, finish: FinishSettings) -> dict[str, float]:
    width = display_width(title)
    return {
        "width": float(width),
        "within_good_width": float(width <= finish.title_good_width),
        "within_max_width": float(width <= finish.title_max_width),
    }


# -- ROUGE-L ---------------------------------------------------------------------------------------------------


def rouge_l(title: str, references: Sequence[str]) -> float:
    """F of the longest common subsequence of tokens with the best reference, 0..1 (Lin 2004, rouge-score's)."""
    return float(_rouge().score_multi(list(references), title)["rougeL"].fmeasure)


class TitleTokenizer:
    """Words for rouge-score, which by itself keeps a-z and 0-9 only and so scores all Chinese 0."""

    def tokenize(self, text: str) -> list[str]:
        """Casefolded words: jieba's where there is Chinese, else runs of letters and digits."""
        return list(_tokens(text))


@lru_cache(maxsize=4096)
def _tokens(text: str) -> tuple[str, ...]:
    text = regex.sub(r"\s+", " ", text).casefold()
    pieces = segmenter().cut(text) if _HAN.search(text) else [text]
    return tuple(word for piece in pieces for word in regex.findall(r"[\p{L}\p{M}\p{N}]+", piece))


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=TitleTokenizer())

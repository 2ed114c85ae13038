"""adgen/evaluation/titles/scores.py: what a title's scores say, what is absent, and that Chinese counts."""

import math

import numpy as np
import pytest
import sacrebleu

from adgen.config import FinishSettings
from adgen.errors import InputError
from adgen.evaluation.scores import names_of
from adgen.evaluation.titles.bleu import CorpusBleu, bleu_counts, corpus_bleu
from adgen.evaluation.titles.scores import ProductTexts, rouge_l, title_scores

ENGLISH = ProductTexts("Grey suede handbag 500 ml", ("evening ready", "roomy inside", "2-in-1"), "Oriel", "en")
CHINESE = ProductTexts("粉色皮质耳机", ("折叠耐用", "录音室风", "头梁轻巧"), "Solde", "zh-CN")
REFERENCE = "粉色皮质耳机：录音室风，头梁轻巧"


def usual_rouge_l():
    """The usual package; it imports nltk and scipy.stats, which each worker would wait for."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


def test_a_faithful_title_has_every_score_and_a_full_one():
    title = "Oriel grey suede handbags: roomy inside, evening-ready, 2 in 1"
    scores = title_scores(title, [title], ENGLISH, FinishSettings(title_good_width=62))
    assert set(scores) == set(names_of("title"))
    assert all(type(value) is float and math.isfinite(value) for value in scores.values())
    full = ("allowed_words", "selling_point_coverage", "number_unit_agreement", "rouge_l", "within_good_width")
    assert [scores[name] for name in full] == [1.0] * len(full)
    assert scores["bleu"] == pytest.approx(100)
    assert scores["width"] == 62


def test_what_the_product_does_not_say_lowers_its_own_score_only():
    scores = title_scores("Grey suede handbag, waterproof, 600 ml, roomy", [], ENGLISH)
    assert scores["allowed_words"] == pytest.approx(4 / 5)
    assert scores["number_unit_agreement"] == 0
    assert scores["selling_point_coverage"] == 0  # half a selling point is none


def test_a_chinese_point_is_covered_by_its_pieces_not_by_its_characters():
    assert title_scores("耳机：耐用折叠，轻巧头梁", [], CHINESE)["selling_point_coverage"] == pytest.approx(2 / 3)
    assert title_scores("耳机：用耐叠折", [], CHINESE)["selling_point_coverage"] == 0


def test_widths_are_columns():
    assert title_scores("耳机" * 15, [], CHINESE)["within_good_width"] == 1
    wide = title_scores("耳机" * 16, [], CHINESE)
    assert (wide["width"], wide["within_good_width"], wide["within_max_width"]) == (64, 0, 1)


@pytest.mark.parametrize("title", ["", "  ", "🎉！"])
def test_a_title_without_words_is_not_praised(title):
    scores = title_scores(title, [REFERENCE], CHINESE)
    assert scores["title_empty"] == (not title.strip())
    assert "allowed_words" not in scores
    assert (scores["selling_point_coverage"], scores["bleu"], scores["rouge_l"]) == (0, 0, 0)


@pytest.mark.parametrize("references", [[], [None], ["", " \n"]])
def test_without_a_reference_there_is_no_bleu_and_no_rouge(references):
    assert not {"bleu", "rouge_l"} & set(title_scores("a title", references, ENGLISH))
    assert corpus_bleu(["a title"], [references], [None]) is None


def test_a_product_of_nulls_allows_stop_words_only():
    scores = title_scores("The mug", [], ProductTexts.of({"title": None, "selling_points": None}))
    assert scores["allowed_words"] == 0.5
    assert "selling_point_coverage" not in scores


def test_the_usual_package_drops_chinese_and_ours_does_not():
    near = "粉色皮质耳机：录音室风，折叠耐用"
    assert usual_rouge_l().score(REFERENCE, REFERENCE)["rougeL"].fmeasure == 0
    assert rouge_l(REFERENCE, [REFERENCE]) == 1
    assert 0.4 < rouge_l(near, [REFERENCE]) < 0.9
    assert rouge_l("蓝牙音箱", [REFERENCE]) == 0


def test_rouge_of_english_is_the_usual_package_s_and_takes_the_best_reference():
    title, others = "Grey bag, roomy and light", ["A grey bag: light", "grey bag roomy light inside"]
    theirs = usual_rouge_l().score_multi(others, title)["rougeL"].fmeasure
    assert rouge_l(title, others) == pytest.approx(theirs)


def test_corpus_bleu_of_one_language_is_sacrebleu_s():
    for texts, tokenizer, locale in (
        (["粉色皮质耳机：录音室风", "白色马克杯：可机洗，握感舒适"], "zh", "zh"),
        (["Grey bag: roomy inside, light", "White mug: easy grip and chip resistant"], "13a", "en"),
    ):
        titles = [text[:-3] for text in texts]
        theirs = sacrebleu.corpus_bleu(titles, [texts], tokenize=tokenizer).score
        assert 0 < theirs < 100
        assert corpus_bleu(titles, [[text] for text in texts], [locale, None]) == pytest.approx(theirs)


def test_corpus_bleu_takes_rows_of_several_languages_and_unequal_references():
    titles = ["粉色皮质耳机：录音室风", "White mug: easy grip", "no reference here"]
    references = [["蓝色的", "粉色皮质耳机：录音室风"], ["White mug: easy grip", None], [""]]
    assert corpus_bleu(titles, references, ["zh", "en", "en"]) == pytest.approx(100)
    with pytest.raises(InputError, match="3 titles with 2 lists of references and 3 locales"):
        corpus_bleu(titles, references[:2], ["zh", "en", "en"])


def test_a_corpus_seen_in_parts_has_the_bleu_of_the_whole():
    texts = [f"White mug {word}: easy grip and chip resistant" for word in ("one", "two", "three", "four", "five", "six", "seven")]
    titles = [text.replace("grip", "hold") if at % 2 else text[:-9] for at, text in enumerate(texts)]
    users = ["a", "a", "b", "c", "d", "e", "f"]
    counts = np.array([bleu_counts(title, [text], "en") for title, text in zip(titles, texts, strict=True)])
    theirs = sacrebleu.corpus_bleu(titles, [texts]).score
    whole, parts = CorpusBleu(500), CorpusBleu(500)
    whole.add(users, counts)
    for part in (slice(0, 1), slice(1, 4), slice(4, 7)):  # user a lies in two parts
        parts.add(users[part], counts[part])
    found = whole.estimate()
    assert found == parts.estimate()
    assert found.mean == pytest.approx(theirs)
    assert (found.rows, found.users) == (7, 6)
    assert 0 <= found.low < found.mean < found.high <= 100
    many = CorpusBleu(500)
    for turn in range(4):
        many.add([f"{user}{turn}" for user in users], counts)
    assert many.estimate().mean == pytest.approx(theirs)
    assert many.estimate().high - many.estimate().low < 0.6 * (found.high - found.low)
    assert CorpusBleu(500).estimate() is None
    alone = CorpusBleu(500)
    alone.add(["a"], counts[:1])
    assert alone.estimate()[1:] == (None, None, 1, 1, 1.0)


def test_bleu_of_two_evaluations_is_compared_with_the_same_users_drawn():
    texts = [f"White mug number {word}: easy grip and chip resistant" for word in ("one", "two", "three", "four", "five", "six")]
    users = ["a", "b", "c", "d", "e", "f"]
    near, far = CorpusBleu(500), CorpusBleu(500)
    near.add(users, np.array([bleu_counts(text[at:-10], [text]) for at, text in enumerate(texts)]))
    far.add(users, np.array([bleu_counts(text.replace("grip", "hold")[at:-10], [text]) for at, text in enumerate(texts)]))
    change = near.change_from(far)
    assert change.here == near.estimate().mean > change.there == far.estimate().mean
    assert change.difference.mean == pytest.approx(change.here - change.there)
    assert change.difference.low < change.difference.mean < change.difference.high
    assert change.difference.is_significant
    apart = [each.estimate().high - each.estimate().low for each in (near, far)]
    assert change.difference.high - change.difference.low < sum(apart)
    same = near.change_from(near).difference
    assert (same.mean, same.low, same.p_value) == (0, None, 1.0)
    assert CorpusBleu(500).change_from(CorpusBleu(500)) is None


def test_chinese_bleu_counts_characters_whatever_the_locale_says():
    near = "粉色皮质耳机：录音室风，折叠耐用"
    assert title_scores(near, [REFERENCE], CHINESE)["bleu"] > 40
    assert title_scores(near, [REFERENCE], CHINESE._replace(locale=None))["bleu"] > 40
    assert sacrebleu.sentence_bleu(near, [REFERENCE]).score < 30  # its default takes a run of Chinese as one word

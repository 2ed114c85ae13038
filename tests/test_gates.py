"""adgen/finishing/gates.py and its rule packs: levels, verdicts, scores, and the order of reasons."""

import numpy as np
import pytest

from adgen.config import FinishSettings, GateLevels
from adgen.errors import SettingsError
from adgen.finishing import gates
from adgen.finishing.gates import GATES, Draft, judge, rules_digest
from adgen.finishing.rules import packs_for, rule_packs
from adgen.finishing.wording import Wording

NOISE = np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8)
TEXTS = ("红色纯棉短袖T恤 500毫升", "Grey t-shirt, pure cotton, 12 V", "加厚 防风")


def draft(title="Grey cotton t-shirt", **changes) -> Draft:
    fields = {"title": title, "title_was_cut": False, "product_texts": TEXTS, "locale": None, "background": NOISE}
    return Draft(**({**fields, "product_share": 0.3, "product_inside": 1.0} | changes))


def verdict_of(gate: str, title="Grey cotton t-shirt", settings=None, **changes) -> str:
    return judge(draft(title, **changes), settings or FinishSettings()).gates[gate]


def test_a_good_draft_passes_every_gate():
    verdict = judge(draft(), FinishSettings())
    assert (verdict.status, verdict.reason) == ("ok", None)
    assert verdict.gates == dict.fromkeys(GATES, "ok")
    assert all(type(score) is float for score in verdict.scores.values())


def test_every_gate_has_a_level_and_every_level_a_gate():
    assert set(GATES) == set(GateLevels.model_fields)


BAD = {
    "title_empty": {"title": ""},
    "title_length": {"title": "cotton " * 20},
    "forbidden_words": {"title": "最佳 cotton"},
    "numbers_and_units": {"title": "cotton 13 V"},
    "allowed_words": {"title": "woollen shirt"},
    "picture_blank": {"background": np.zeros((16, 16, 3), np.uint8)},
    "product_visible": {"product_inside": 0.5},
}


@pytest.mark.parametrize("gate", GATES)
def test_level_decides_what_a_failing_gate_does(gate):
    for level, status, start in [("reject", "rejected", "reject: "), ("warn", "ok", "warn: "), ("off", "ok", None)]:
        levels = dict.fromkeys(GATES, "off") | {gate: level}
        verdict = judge(draft(**BAD[gate]), FinishSettings(gates=GateLevels(**levels)))
        assert (verdict.status, verdict.reason) == (status, gate if level == "reject" else None)
        assert set(verdict.gates) == (set() if level == "off" else {gate})
        if start:
            assert verdict.gates[gate].startswith(start)


def test_reason_is_the_first_rejecting_gate_and_words_are_allowed_by_default():
    verdict = judge(draft("最佳 woollen 13 V", background=BAD["picture_blank"]["background"]), FinishSettings())
    assert verdict.reason == "forbidden_words"
    assert [name for name, text in verdict.gates.items() if text.startswith("reject")] == [
        "forbidden_words",
        "numbers_and_units",
        "picture_blank",
    ]
    assert verdict.gates["allowed_words"].startswith("warn: ")


def test_an_empty_title_says_so_and_is_not_praised_for_its_words():
    verdict = judge(draft(""), FinishSettings())
    assert verdict.reason == "title_empty"
    assert not {"allowed_words", "numbers_and_units", "forbidden_words", "title_length"} & set(verdict.gates)
    assert "allowed_words" not in verdict.scores


def test_a_cut_title_is_told():
    assert "cut at 150" in verdict_of("title_length", title_was_cut=True)


# -- allowed words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "title",
    [
        "PURE COTTON",
        "the grey T-shirts for you",
        "纯棉短袖",
        "加厚防风的纯棉T恤",
        "短袖红色",
        "grey纯棉",
        "cotton's",
        "🎉 cotton!",
    ],
)
def test_words_of_the_product_are_allowed_in_any_order(title):
    assert verdict_of("allowed_words", title) == "ok"


@pytest.mark.parametrize(
    ("title", "unknown"),
    [("woollen shirt", '"woollen"'), ("羊毛短袖", '"羊毛"'), ("棉纯", '"棉纯"'), ("纯棉真丝防风", '"真丝"'), ("袖", '"袖"')],
)
def test_words_that_the_product_does_not_say_are_named(title, unknown):
    assert verdict_of("allowed_words", title) == f"warn: not in the product's texts: {unknown}"


def test_share_of_allowed_words():
    assert judge(draft("grey wool"), FinishSettings()).scores["allowed_words"] == 0.5
    assert judge(draft("纯棉羊毛"), FinishSettings()).scores["allowed_words"] == 0.5
    assert judge(draft("500ml"), FinishSettings()).scores["allowed_words"] == 1.0


def test_cover_is_the_best_one_not_the_greedy_one():
    """From the left the longest piece is 防水透; only 防水 + 透气鞋 covers everything."""
    wording = Wording.of(["防水透", "透气鞋"], [])
    assert wording.uncovered("防水透气鞋") == []
    assert wording.uncovered("防水x气") == ["x气"]


# -- numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["500ml", "５００ 毫升", "12V cotton", "500", "cotton"])
def test_numbers_of_the_product_are_accepted(title):
    assert verdict_of("numbers_and_units", title) == "ok"


@pytest.mark.parametrize("title", ["500g", "501ml", "12 W", "100% cotton", "2件"])
def test_numbers_nobody_stated_are_rejected(title):
    assert verdict_of("numbers_and_units", title).startswith("reject: ")


# -- forbidden words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "verdict"),
    [
        ("最佳T恤", "reject: "),
        ("最 佳 T恤", "reject: "),
        ("最*佳T恤", "reject: "),
        ("國家級", "reject: "),
        ("No.1纯棉", "reject: "),
        ("最佳食用期", "ok"),
        ("第一T恤", "warn: "),
        ("第一次", "ok"),
        ("第一步的第一", "warn: "),
        ("优秀的一天", "ok"),
        ("cures all", "reject: "),
        ("secure pocket", "ok"),
        ("the best shirt", "warn: "),
        ("best before 12 V", "ok"),
        ("BPA-free", "ok"),
        ("free gift", "warn: "),
    ],
)
def test_forbidden_words_by_severity_and_exception(title, verdict):
    assert verdict_of("forbidden_words", title).startswith(verdict)


def test_packs_follow_the_locale():
    assert verdict_of("forbidden_words", "最佳", locale="en-US") == "ok"
    assert verdict_of("forbidden_words", "最佳", locale="zh_CN").startswith("reject")
    assert [pack.language for pack in packs_for("ZH-cn")] == ["zh"]
    assert {pack.language for pack in packs_for("sv-SE")} == set(rule_packs())


def test_campaign_adds_words_and_exceptions():
    settings = FinishSettings(forbidden_words=("Rival", "竞品"), forbidden_exceptions=("最佳牌",))
    assert verdict_of("forbidden_words", "like RIVAL", settings) == 'reject: "rival" (campaign)'
    assert verdict_of("forbidden_words", "竞品", settings).startswith("reject")
    assert verdict_of("forbidden_words", "最佳牌T恤", settings) == "ok"
    assert verdict_of("forbidden_words", "最佳T恤", settings).startswith("reject")


def test_no_rule_forbids_its_own_exceptions():
    for pack in rule_packs().values():
        for rule in pack.rules:
            assert not set(rule.terms) & set(rule.exceptions)
            for phrase in rule.exceptions:
                verdict = verdict_of("forbidden_words", phrase, locale=pack.language)
                assert f"({rule.id})" not in verdict


def test_a_wrong_rule_pack_names_file_field_and_value(monkeypatch, tmp_path):
    (tmp_path / "xx.toml").write_text('language = "xx"\nstop_words = []\n[[rules]]\nid = "a"\nseverity = "fatal"\n')
    monkeypatch.setattr("adgen.finishing.rules._pack_files", lambda: [tmp_path / "xx.toml"])
    with pytest.raises(SettingsError, match=r"xx\.toml.*severity.*fatal"):
        rule_packs.__wrapped__()


# -- the picture -----------------------------------------------------------------------------------------------


def test_nearly_one_colour_is_blank_and_a_soft_gradient_is_not():
    flat = np.full((16, 16, 3), 128, np.uint8)
    flat[::2] += 1
    assert verdict_of("picture_blank", background=flat).startswith("reject")
    gradient = np.tile(np.linspace(200, 220, 16).astype(np.uint8)[:, None, None], (1, 16, 3))
    assert verdict_of("picture_blank", background=gradient) == "ok"


def test_contrast_is_the_mean_of_the_channels_standard_deviations():
    for shape in ((64, 64, 3), (5, 31, 3)):
        picture = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        scores = judge(draft(background=picture), FinishSettings()).scores
        assert scores["background_contrast"] == pytest.approx(picture.std(axis=(0, 1)).mean(), rel=1e-9)


@pytest.mark.parametrize(("share", "inside"), [(0.001, 1.0), (0.99, 1.0), (0.3, 0.9)])
def test_product_has_to_be_visible(share, inside):
    assert verdict_of("product_visible", product_share=share, product_inside=inside).startswith("reject")


# -- fingerprint -----------------------------------------------------------------------------------------------


def test_rules_digest_changes_with_rules_and_code_version(monkeypatch):
    before = rules_digest()
    assert before == rules_digest()
    monkeypatch.setattr(gates, "VERSION", gates.VERSION + 1)
    assert rules_digest() != before
    monkeypatch.undo()
    monkeypatch.setattr(gates, "pack_texts", lambda: ("zh.toml", "other"))
    assert rules_digest() != before

"""adgen/finishing/gates.py and its rule packs: levels, verdicts, scores, and the order of reasons."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adgen.config import FinishSettings, GateLevels
from adgen.errors import SettingsError
from adgen.finishing import gates, segmentation
from adgen.finishing.gates import GATES, Draft, judge, rules_digest
from adgen.finishing.rules import rule_packs
from adgen.finishing.titles import words
from adgen.finishing.units import UNITS
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


DENIED = [
    ("面料不防水", "防水", "不防水"),
    ("本品不含糖", "含糖", "不含糖"),
    ("杯子不能进微波炉", "进微波炉", "不能进微波炉"),
    ("不完全防水", "防水", "不完全防水"),
    ("非一次性", "一次性", "非一次性"),
    ("無添加蔗糖", "添加蔗糖", "无添加蔗糖"),
    ("Not waterproof", "waterproof", "not waterproof"),
    ("It is not fully waterproof.", "Waterproof!", "not fully waterproof"),
    ("a non-slip mat", "slip mat", "non-slip mat"),
    ("Does not contain nuts", "contains nuts", "not contain nuts"),
    ("without straps", "with straps", "without straps"),
    ("It is not at all waterproof", "waterproof", "not waterproof"),
    ("not waterproof or dustproof", "dustproof", "not waterproof or dustproof"),
    ("sugar-free gum", "sugar gum", "sugar-free gum"),
    ("不 防水", "防水", "不防水"),
]


@pytest.mark.parametrize(("text", "claim", "honest"), DENIED)
def test_a_dropped_negation_is_no_allowed_wording(text, claim, honest):
    assert verdict_of("allowed_words", claim, product_texts=(text,)).startswith("warn: not in the product's texts")
    assert verdict_of("allowed_words", honest, product_texts=(text,)) == "ok"
    assert verdict_of("allowed_words", claim, product_texts=(text, claim)) == "ok"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Not cheap, waterproof", "waterproof"),
        ("No. 1 quality", "quality"),
        ("不仅防水而且透气", "防水"),
        ("无线耳机", "耳机"),
        ("不锈钢保温杯", "保温杯"),
        ("純棉短袖", "纯棉"),
    ],
)
def test_what_no_negation_denies_is_allowed(text, title):
    assert verdict_of("allowed_words", title, product_texts=(text,)) == "ok"


# -- numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["500ml", "５００ 毫升", "12V cotton", "500", "cotton"])
def test_numbers_of_the_product_are_accepted(title):
    assert verdict_of("numbers_and_units", title) == "ok"


SAME = [
    ("1500 ml", "1.5 l"),
    ("1500毫升", "1.5升"),
    ("1,500 ml", "1500毫升"),
    ("0.5 l", ".5 l"),
    ("0.5 l", "½ l"),
    ("0.5 l", "1/2 l"),
    ("1.5 l", "1½ l"),
    ("1.5 l", "1 1/2 l"),
    ("2 kg", "4斤"),
    ("500g", "五百克"),
    ("500g", "一斤"),
    ("3件套", "三件套"),
    ("2双", "两双"),
    ("30000毫安时", "3万毫安时"),
    ("1.5亿", "150000000"),
    ("20000转", "两万转"),
    ("12 pcs", "twelve pieces"),
    ("12", "a dozen"),
    ("25 pieces", "twenty-five pieces"),
    ("200 sheets", "two hundred sheets"),
    ("2-in-1", "two-in-one"),
    ("20% off", "8折"),
    ("15% off", "8.5折"),
    ("15% off", "85折"),
    ("20% off", "八折"),
    ("50%", "百分之五十"),
    ("10-20 cm", "10cm – 20cm"),
    ("10–20cm", "10 cm to 20 cm"),
    ("10至20厘米", "10cm-200mm"),
    ("-20°C", "零下20℃"),
    ("-20 °C", "minus 20°C"),
    ("500-ml bottle", "500ml"),
    ("1\u202f000 g", "1 kg"),
    ("1.000.000 beads", "1,000,000 beads"),
    ("１．５Ｌ", "1500ml"),
    ("2 years", "24 months"),
    ("1 in", "25.4 mm"),
    ("5000mAh", "5Ah"),
    ("1.2亿", "120 million"),
    ("15000", "1万5千"),
    ("25 pieces", "二十五 件"),
    ("1001", "一千零一夜"),
    ("1/3", "三分之一"),
    ("250g", "半斤"),
    ("0.5 l", "半升"),
    ("1 kg", "1'000 g"),
    ("12’500 beads", "12,500 beads"),
    ("500 ml", "half a litre"),
    ("0.5 l", "half-liter"),
    ("五折", "对折优惠"),
]


@pytest.mark.parametrize(("text", "title"), [*SAME, *(pair[::-1] for pair in SAME)])
def test_a_number_is_stated_in_whatever_form_and_unit(text, title):
    assert words(title).numbers, title
    assert verdict_of("numbers_and_units", title, product_texts=(text,)) == "ok"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("1500 ml", "15 l"),
        ("1.5 l", "15 l"),
        ("0.5 l", "5 l"),
        ("-20°C", "20°C"),
        ("20°C", "-20°C"),
        ("3件套", "四件套"),
        ("3000毫安时", "3万毫安时"),
        ("50%", "50% off"),
        ("8折", "80% off"),
        ("8折", "七折"),
        ("10-20 cm", "10-30 cm"),
        ("two pockets", "four pockets"),
        ("500g", "五百毫升"),
        ("1/2 l", "1 l"),
        ("5 million", "5 billion"),
        ("120 million", "120 billion"),
        ("三分之一", "三分之二"),
        ("半斤", "一斤"),
        ("1 g", "1'000 g"),
        ("1 litre", "half a litre"),
        ("八折", "对折优惠"),
        ("一千零一夜", "一千零二夜"),
    ],
)
def test_another_number_is_rejected_in_whatever_form(text, title):
    assert verdict_of("numbers_and_units", title, product_texts=(text,)).startswith("reject: ")


@pytest.mark.parametrize(
    "title",
    [
        "一次性",
        "三明治",
        "千层蛋糕",
        "万能",
        "第一次",
        "唯一",
        "四季",
        "十分舒适",
        "百搭",
        "好评如潮",
        "one size",
        "no one",
        "一双好鞋",
    ],
)
def test_idioms_claim_no_number(title):
    assert words(title).numbers == ()


PIECES = """
    1 2 10 500 1,000 1.5 .5 ½ 1/2 -3 一 二 两 三百 五 十 百 千 万 亿 零 第 不 无 非 not no non without fully 含
    防水 防 水 waterproof cotton ml L 升 毫升 % off 折 kg 斤 two three hundred million dozen and - – ~
    x × to in . , / 。 🎉 pcs 件 个 纯棉 純棉 ℃ ″ ' the T-shirt カメラ 至 百分之 零下 minus 1.2.3 ４５ ٣
""".split()  # noqa: SIM905


@pytest.mark.slow
def test_any_text_allows_itself():
    rng = random.Random(3)
    for _ in range(3000):
        text = "".join(rng.choice(PIECES) + rng.choice(["", " ", " "]) for _ in range(rng.randrange(1, 12)))
        wording = Wording.of((text,), ())
        assert wording.unstated(words(text).numbers) == [], text
        assert wording.coverage(text) == (1.0, []), text


@pytest.mark.parametrize(
    "text",
    ["9" * 6000, "一" * 6000, "二三" * 5000 + "件", "9" * 6000 + "万", "1." * 3000, "百分之" + "一" * 6000, "1 " * 3000 + "dozen"],
)
def test_endless_numbers_are_read_without_an_error(text):
    assert Wording.of((text,), ()).unstated(words(text).numbers) == []


def test_any_number_is_stated_by_itself_in_any_grouping():
    rng = random.Random(7)
    for _ in range(500):
        value = rng.choice([rng.randrange(10 ** rng.randrange(1, 8)), round(rng.random() * 1000, rng.randrange(1, 4))])
        unit = rng.choice(sorted(UNITS))
        forms = [f"{value}{unit}", f"{value:,} {unit}", f"{value}  {unit}".replace("  ", " ")]
        for form in forms[1:]:
            assert [number.base for number in words(form).numbers] == [number.base for number in words(forms[0]).numbers], form


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
        ("risk\u2011free", "reject: "),
        ("№1 shirt", "reject: "),
        ("top-1", "reject: "),
        ("100 % effective", "reject: "),
    ],
)
def test_forbidden_words_by_severity_and_exception(title, verdict):
    assert verdict_of("forbidden_words", title).startswith(verdict)


@pytest.mark.parametrize("locale", ["en-US", "zh_CN", "sv-SE", "", None])
def test_forbidden_words_of_all_packs_count_whatever_the_locale(locale):
    for title in ("最佳", "頂級", "miracle", "Ｍｉｒａｃｌｅ", "無副作用", "銷量冠軍", "最🔥佳"):
        assert verdict_of("forbidden_words", title, locale=locale).startswith("reject"), title


@pytest.mark.parametrize("title", ["secure", "manicure", "cured", "No.10", "top 1.5", "freedom", "bestow", "Top 10"])
def test_forbidden_words_are_whole_words(title):
    assert verdict_of("forbidden_words", title) == "ok"


@pytest.mark.parametrize(
    "title",
    [
        "中国宴席餐具",
        "獨特供應鏈",
        "此处方便携带",
        "农药用量",
        "避免费时的操作",
        "带领先进班组",
        "十万能量",
        "主治医师",
    ],
)
def test_a_chinese_term_is_not_read_across_the_end_of_a_word(title):
    assert verdict_of("forbidden_words", title) == "ok"


@pytest.mark.parametrize(
    ("title", "term"),
    [
        ("本品特供货", "特供"),
        ("可防癌症", "防癌"),
        ("能消炎症", "消炎"),
        ("绝无副作用", "无副作用"),
        ("中医治疗仪", "治疗"),
        ("根治疗程", "根治"),
        ("主治疗法", "主治"),
        ("最优惠", "最优"),
        ("最好用的锅", "最好"),
        ("最佳人选", "最佳"),
        ("送礼之首选", "首选"),
        ("中国国宴用酒", "国宴"),
        ("独特而特供", "特供"),
        ("中国第一款", "第一"),
        ("全网第一款", "全网第一"),
        ("完美国风", "完美"),
        ("唯一一款", "唯一"),
    ],
)
def test_a_chinese_term_is_found_in_unspaced_text(title, term):
    assert f'"{term}"' in verdict_of("forbidden_words", title)
    assert f'"{term}"' in verdict_of("forbidden_words", f"纯棉{title}舒适T恤")


def test_idioms_hold_for_words_of_a_campaign_but_not_for_themselves():
    settings = FinishSettings(forbidden_words=("最", "第一"))
    for title in ("最近流行", "第一次购买", "最后几件"):
        assert verdict_of("forbidden_words", title, settings) == "ok"
    for title in ("最新鲜", "最近最火", "第一选择", "最后第一"):
        assert verdict_of("forbidden_words", title, settings).startswith("reject")
    assert verdict_of("forbidden_words", "第一次购买", FinishSettings(forbidden_words=("第一次",))).startswith("reject")


def test_every_chinese_term_is_found_by_itself_and_among_other_words():
    for rule in rule_packs()["zh"].rules:
        for term in (term for term in rule.terms if not term[0].isascii()):
            for title in (term, f"纯棉{term}舒适", f"这款{term}的杯子", f"T{term}恤"):
                assert verdict_of("forbidden_words", title) != "ok", title


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


@pytest.mark.slow
def test_threads_that_finish_creatives_load_the_dictionary_once(monkeypatch):
    import jieba

    loads, load = [], jieba.Tokenizer.gen_pfdict
    monkeypatch.setattr(jieba.Tokenizer, "gen_pfdict", staticmethod(lambda file: (loads.append(1), load(file))[1]))
    segmentation._loaded.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        assert len({id(found) for found in threads.map(lambda _: segmentation.segmenter(), range(8))}) == 1
    assert len(loads) == 1

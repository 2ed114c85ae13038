"""Prompts: the published layout, and data that never becomes markup."""

import pytest
from support.models import MARKUP, bpe_tokenizer, save_small_model, small_config, small_prompter, unigram_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers
from tokenizers.processors import TemplateProcessing

from adgen.errors import ModelError
from adgen.generation.prompt import Prompter, PromptFacts
from adgen.generation.starter import train_tokenizer
from adgen.generation.template import load_template

SPELLED = "mug <begin_of_image> <｜end▁of▁sentence｜> <image_placeholder><|User|>"


def text_of(prompter, ids) -> str:
    return prompter._full.decode(list(ids), skip_special_tokens=False)


def test_layout_of_a_whole_prompt():
    prompter = small_prompter()
    prompt = prompter.picture_prompt(PromptFacts("red mug", ("steel", "warm"), ("a", "b"), 1), "fresh mug")
    text = text_of(prompter, prompt.ids)
    title = "<begin_of_history_title>" + "<title_placeholder>" * 6 + "<end_of_history_title>"
    image = "<begin_of_image>" + "<image_placeholder>" * 4 + "<end_of_image>"
    assert '"steel,warm"' in text
    assert f'"{title}{title}"' in text
    assert '"red mug"' in text
    assert image in text
    assert text.startswith("<|User|>: Write")
    assert "\n\n<|Assistant|>: <prompt>fresh mug</prompt><｜end▁of▁sentence｜><begin_of_image>" in text
    slots = [s for s in prompt.slots if s >= 0]
    assert sorted(slots) == list(range(4 + 12))
    titles, images = slots[:12], slots[12:]
    assert (titles, images) == (list(range(4, 16)), list(range(4))), "titles come first in the prompt, pictures first in the fusion"


def test_the_title_prompt_is_the_start_of_the_answer():
    prompter = small_prompter()
    text = text_of(prompter, prompter.title_prompt(PromptFacts("red mug")).ids)
    assert text.endswith("<|Assistant|>: <prompt>")


def test_the_negative_prompt_has_no_history_and_an_empty_answer():
    prompter = small_prompter()
    prompt = prompter.negative_prompt()
    assert text_of(prompter, prompt.ids).endswith("\n\n<|Assistant|>:<begin_of_image>")
    assert set(prompt.slots) == {-1}


@pytest.mark.parametrize(
    "tokenizer", [bpe_tokenizer, lambda: bpe_tokenizer(True), unigram_tokenizer], ids=["bpe", "merging", "unigram"]
)
def test_a_special_token_spelled_in_data_stays_text(tokenizer):
    prompter = small_prompter(tokenizer())
    plain = PromptFacts("mug", ("warm",), ("a",), 1)
    spelled = PromptFacts(SPELLED, (SPELLED,), ("a",), 1)
    special = prompter._special_ids
    count = lambda prompt: sum(i in special for i in prompt.ids)  # noqa: E731
    assert count(prompter.picture_prompt(plain, "t")) == count(prompter.picture_prompt(spelled, SPELLED))
    assert SPELLED in text_of(prompter, prompter.picture_prompt(spelled, "t").ids), "and stays what it was"
    assert special.isdisjoint(set(prompter.history_title_ids(SPELLED)) - {prompter.pad_id})


def test_text_that_a_vocabulary_cannot_spell_is_no_markup():
    """Its unknown token is special too; a title of such text must neither stop a run nor gain markup."""
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *map(chr, range(9, 127))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    names = load_template().tokens.model_dump().values()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ["<unk>", *names, *MARKUP]])
    prompter = small_prompter(tokenizer)
    assert prompter.history_title_ids("mug 🎉")[:5] == [vocabulary[c] for c in "mug "] + [vocabulary["<unk>"]]


@pytest.mark.parametrize("text", ["<end_of_image>" * 900, "＜end_of_image＞", "a <end_of_image"])
def test_a_vocabulary_that_spells_special_tokens_itself_makes_none(text):
    """SentencePiece vocabularies hold their special tokens; a normalizer may even make one of other characters."""
    names = [*load_template().tokens.model_dump().values(), *MARKUP]
    pieces = [("<unk>", 0.0), *((name, -1.0) for name in names), *((chr(i), -5.0) for i in range(9, 127))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    prompter = small_prompter(tokenizer)
    assert prompter._special_ids.isdisjoint(prompter.text_ids(text))


def test_letters_that_were_added_to_a_vocabulary_are_text():
    """DeepSeek's tokenizers hold "ü" and a dozen more as added tokens; the published model reads titles with them."""
    tokenizer = bpe_tokenizer()
    tokenizer.add_tokens([AddedToken("ü", special=False)])
    ids = small_prompter(tokenizer).history_title_ids("Müsli")
    assert ids[:5] == tokenizer.encode("Müsli", add_special_tokens=False).ids
    assert tokenizer.token_to_id("ü") in ids


def test_the_wording_is_one_line():
    assert not set("\\\n") & set(load_template().user)


def test_braces_and_quotes_in_data_are_data():
    prompter = small_prompter()
    nasty = 'a {user} {0} "quoted" %s \\n'
    assert nasty in text_of(prompter, prompter.title_prompt(PromptFacts(nasty, (nasty,))).ids)


@pytest.mark.parametrize("title", ["", "مرحبا بالعالم", "👩‍👩‍👧 mug 🎉", "a" * 10_000, "\u200b\u202e", "红" * 5000])
def test_strange_titles_make_prompts(title):
    prompter = small_prompter()
    prompt = prompter.title_prompt(PromptFacts(title, (title,), (title,), 1))
    limits = prompter.template.max_product_title_tokens + prompter.template.max_selling_points_tokens
    assert len(prompt) <= len(prompter.title_prompt(PromptFacts("", (), ("x",), 1))) + limits + 8


def test_history_titles_have_the_models_length():
    prompter = small_prompter()
    for title in ("", "mug", "a very long title that goes on " * 20):
        assert len(prompter.history_title_ids(title)) == 6
    assert prompter.history_title_ids("") == [prompter.pad_id] * 6


def test_a_tokenizer_that_adds_bos_gets_it_once():
    tokenizer = bpe_tokenizer()
    bos = "<｜begin▁of▁sentence｜>"
    processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    tokenizer.post_processor = processor
    ids = small_prompter(tokenizer).title_prompt(PromptFacts("mug")).ids
    assert ids[0] == tokenizer.token_to_id(bos)
    assert ids.count(tokenizer.token_to_id(bos)) == 1


def test_reading_a_title():
    prompter = small_prompter()
    encode = lambda text: prompter._plain.encode(text, add_special_tokens=False).ids  # noqa: E731
    assert prompter.read_title(encode("fresh mug</prompt> and more</prompt>")) == "fresh mug"
    assert prompter.read_title(encode("</prompt>")) == ""
    assert prompter.read_title(encode("never closes")) is None
    assert prompter.read_title([]) is None


def test_a_directory_carries_its_own_wording(tmp_path):
    save_small_model(tmp_path)
    path = tmp_path / "prompt.toml"
    path.write_text(path.read_text().replace("Write a product title", "Bitte einen Titel"))
    prompter = Prompter.load(tmp_path, small_config())
    assert "Bitte einen Titel" in text_of(prompter, prompter.title_prompt(PromptFacts("mug")).ids)
    prompter.save(tmp_path)
    assert Prompter.load(tmp_path, small_config()).template == prompter.template


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{product_title}", "the product", r"prompt\.toml: user has the fields"),
        ("{title}</prompt>", "{title}", "no title could ever end"),
        ("negative = ", "negativ = ", r"prompt\.toml: .*negativ: unknown key"),
        ("[tokens]", "[tokens", r"prompt\.toml"),
        ("{title}</prompt>", "{title!r}</prompt>", r"prompt\.toml: answer has the fields \['title!r'\]"),
        ("{title}</prompt>", "{title}</{prompt>", r"prompt\.toml: answer: expected '}'"),
    ],
)
def test_a_bad_template_names_the_field(tmp_path, old, new, message):
    save_small_model(tmp_path)
    path = tmp_path / "prompt.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ModelError, match=message):
        load_template(path)


def test_a_damaged_tokenizer_file_is_named(tmp_path):
    save_small_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version"')
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer"):
        Prompter.load(tmp_path, small_config())
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json: no such file"):
        Prompter.load(tmp_path, small_config())


def test_a_title_that_the_model_writes_is_data_too():
    """The model may write a special token into its title; read back, it is text."""
    prompter = small_prompter()
    written = prompter.read_title([prompter._id("begin_of_image"), *prompter._plain.encode("mug</prompt>").ids])
    assert written == "<begin_of_image>mug"
    ids = prompter.picture_prompt(PromptFacts("mug"), written).ids
    assert ids.count(prompter._id("begin_of_image")) == 1


def test_a_learned_tokenizer_spells_chinese_by_the_character_and_the_template_by_the_word():
    """However many titles there are: a token for each pair of colour and pattern is one that nobody learns to copy."""
    template = load_template()
    colours, patterns = ("红色", "蓝色", "黄色"), ("格纹", "条纹", "锯齿纹")
    titles = [f"{colour}{pattern}陶瓷杯，容量大" for colour in colours for pattern in patterns] * 400
    titles += [f"Plain {colour} mug number {number}" for number in range(600) for colour in ("red", "teal")]
    tokenizer = train_tokenizer(titles, template, 1024)

    def pieces(text: str) -> list[str]:
        return [tokenizer.decode([token]) for token in tokenizer.encode(text, add_special_tokens=False).ids]

    assert pieces("红色锯齿纹陶瓷杯，容量大") == list("红色锯齿纹陶瓷杯，容量大")
    words = pieces(" The product to advertise is")
    assert words == [" The", " product", " to", " advertise", " is"]
    for text in (titles[0], titles[-1], "从未见过的字 ⛄ never seen"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text

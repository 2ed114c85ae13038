"""Where words begin and end in Chinese, which has no spaces: jieba's dictionary, without guesses at words that it has not."""

import warnings
from functools import cache
from threading import Lock

import regex

_HAN = regex.compile(r"\p{Han}+")
_COMMON = 100
"""Times that a word stands in the corpus of jieba's dictionary: rarer ones are names, and readings that few writers mean."""


_LOADING = Lock()


def segmenter():
    """jieba's tokenizer: a second to load, and 70 MB. Loaded once, however many threads ask first."""
    with _LOADING:
        return _loaded()


@cache
def _loaded():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources is deprecated, and its regular expressions have old escapes
        import jieba
    tokenizer = jieba.Tokenizer()
    # Its own start would load a marshalled cache from the temporary folder, which any user of the machine may have written.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


def is_of_other_words(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is no word here but the end of one and the beginning of the next: 国宴 in 中国|宴席.

    Both ends have to lie within common words: where one does not, as in 防|癌症 or 本|品特|供货, the piece may mean what it says.
    What the dictionary itself takes for several words (全国第一) never is, nor what a longer word holds whole.
    """
    run = next((match for match in _HAN.finditer(text) if match.start() <= start and end <= match.end()), None)
    if run is None or len(list(segmenter().cut(text[start:end], HMM=False))) > 1:
        return False
    spans, at = [], run.start()
    for word in segmenter().cut(run[0], HMM=False):
        spans.append((at, at := at + len(word), segmenter().FREQ.get(word, 0) >= _COMMON))
    cut_off = [begin < start < stop < end and common for begin, stop, common in spans]
    broken_off = [start < begin < end < stop and common for begin, stop, common in spans]
    return any(cut_off) and any(broken_off)

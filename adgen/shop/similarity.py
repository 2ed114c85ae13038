"""Similarity of titles without a model: signed hashed n-grams, the same numbers in every process and on every machine.

A title is folded (NFKC, case, white space), cut into its character 2- to 4-grams and its words, and each piece adds +1 or
-1 to one of 256 sums. Chinese needs no word list for that: its bigrams are its words.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

EMBEDDING_NAME = "hashed-ngrams-1"  # another number for any change below: a catalog embeds its titles again
EMBEDDING_SIZE = 256
_GRAMS = (2, 3, 4)
_TITLES_AT_ONCE = 2048
_CHARACTERS_AT_ONCE = 1 << 20
_COSINES_AT_ONCE = 4096
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)
_WORD = re.compile(r"\w+")


def embed_titles(titles: Sequence[str | None]) -> np.ndarray:
    """Titles -> (n, 256) float32 of length 1, rounded to what float16 holds; a title without any character is all zeros."""
    folded = [_fold(title or "") for title in titles]
    blocks, start = [np.zeros((0, EMBEDDING_SIZE), np.float32)], 0
    while start < len(folded):
        end, characters = start, 0
        while end < len(folded) and end - start < _TITLES_AT_ONCE and characters < _CHARACTERS_AT_ONCE:
            characters += len(folded[end])
            end += 1
        blocks.append(_embed(folded[start:end]))
        start = end
    return np.concatenate(blocks)


def cosines(embeddings: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine of rows left[i] and right[i] of float16 `embeddings`, rounded to 1e-3; float64 of left's length.

    Products of two float16 below 1 are multiples of 2**-48, so their sum is exact in float64: no order of summation, no
    batch and no library version can tip a cosine over a rounding step, and with it somebody's draw.
    """
    out = np.empty(len(left))
    for start in range(0, len(left), _COSINES_AT_ONCE):
        part = slice(start, start + _COSINES_AT_ONCE)
        out[part] = np.einsum("nd,nd->n", embeddings[left[part]].astype(np.float64), embeddings[right[part]].astype(np.float64))
    return np.round(out, 3)


def _fold(title: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", title).casefold())
    return " ".join(text.split())


def _embed(texts: list[str]) -> np.ndarray:
    padded = [f" {text} " if text else "" for text in texts]  # the blanks mark a word's start and end
    lengths = np.array([len(text) for text in padded])
    starts = np.cumsum(lengths) - lengths
    hashes, rows = [], []
    sums, shifts = _prefix_sums(np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32))
    row_of = np.repeat(np.arange(len(texts)), lengths)
    for size in _GRAMS:
        first = np.arange(max(len(row_of) - size + 1, 0))
        first = first[row_of[first] == row_of[first + size - 1]]  # no n-gram reaches into the next title
        hashes.append(_span_hashes(sums, shifts, first, first + size, size))
        rows.append(row_of[first])
    words = [(start + m.start(), start + m.end()) for text, start in zip(padded, starts, strict=True) for m in _WORD.finditer(text)]
    first, last = np.array(words, np.int64).reshape(-1, 2).T
    hashes.append(_span_hashes(sums, shifts, first, last, 0))  # size 0: the word "ab" is not the bigram "ab"
    rows.append(row_of[first])
    return _sum_up(np.concatenate(hashes), np.concatenate(rows), len(texts))


def _prefix_sums(characters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sum(c[j] * base**j for j < i) and base**-i, both modulo 2**64: a span's hash is then two look-ups."""
    count = len(characters)
    powers, shifts = np.full(count + 1, _BASE, np.uint64), np.full(count + 1, _INVERSE, np.uint64)
    powers[0] = shifts[0] = 1
    powers, shifts = np.cumprod(powers, dtype=np.uint64), np.cumprod(shifts, dtype=np.uint64)
    sums = np.zeros(count + 1, np.uint64)
    np.cumsum(_mixed(characters.astype(np.uint64)) * powers[:count], out=sums[1:])
    return sums, shifts


def _span_hashes(sums: np.ndarray, shifts: np.ndarray, first: np.ndarray, last: np.ndarray, kind: int) -> np.ndarray:
    return _mixed((sums[last] - sums[first]) * shifts[first] + np.uint64(kind))


def _sum_up(hashes: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    columns = (hashes % np.uint64(EMBEDDING_SIZE)).astype(np.int64)
    signs = np.where(hashes >> np.uint64(63), 1.0, -1.0)
    sums = np.bincount(rows * EMBEDDING_SIZE + columns, signs, count * EMBEDDING_SIZE).reshape(count, EMBEDDING_SIZE)
    lengths = np.sqrt((sums * sums).sum(axis=1, keepdims=True))  # of whole numbers: exact but for the root
    return (sums / np.where(lengths > 0, lengths, 1.0)).astype(np.float16).astype(np.float32)


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

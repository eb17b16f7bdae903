"""Count which letter follows which in code and prose: the table by which curate.randomness knows a written word.

Reads source files (by default the standard library without its tests), drops numbers in hex and escapes, which are no
writing, and prints how many eighths of a bit a letter after another speaks for a random draw from 64 letters rather
than for writing. Positive is random. Rows are the letter before (`^`: none), columns the letter.

    python bench/letter_pairs.py [folder ...] > curate/data/letter-pairs.tsv
"""

from __future__ import annotations

import argparse
import math
import re
import sysconfig
from collections import Counter
from itertools import pairwise
from pathlib import Path

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/"
START = "^"
TOKEN = re.compile(r"[A-Za-z0-9_+/-]+")
NO_WRITING = re.compile(r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[abfnrtvNU0]|0[xX][0-9a-fA-F_]+|\b[0-9a-fA-F]{6,}\b")
LONGEST = 40  # letters; longer unbroken runs are data
PRIOR = 20.0  # counts of the letter anywhere, added to those of the pair
CHANCE = 0.02  # share of letters that follow no habit


def texts(folders: list[Path]) -> list[str]:
    files = sorted(
        path
        for folder in folders
        for path in folder.rglob("*.py")
        if not {"site-packages", "test", "tests", "encodings", "idle_test", "pydoc_data"} & set(path.parts)
    )
    return [path.read_text(encoding="utf-8", errors="replace") for path in files]


def pairs(found: list[str]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for text in found:
        for token in TOKEN.findall(NO_WRITING.sub(" ", text)):
            if len(token) <= LONGEST:
                counts.update(pairwise(START + token))
    return counts


def evidence(counts: Counter[tuple[str, str]]) -> dict[str, list[int]]:
    """Letter before → eighths of a bit for each letter after it."""
    anywhere: Counter[str] = Counter()
    for (_, letter), number in counts.items():
        anywhere[letter] += number
    total = anywhere.total() + len(LETTERS)
    rows: dict[str, list[int]] = {}
    for before in START + LETTERS:
        after = sum(counts[before, letter] for letter in LETTERS)
        rows[before] = []
        for letter in LETTERS:
            expected = PRIOR * (anywhere[letter] + 1) / total
            written = (counts[before, letter] + expected) / (after + PRIOR)
            likely = (1 - CHANCE) * written + CHANCE / len(LETTERS)
            rows[before].append(round(8 * math.log2(1 / 64 / likely)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="*", type=Path, help="source files to learn from")
    folders = parser.parse_args().folder or [Path(sysconfig.get_paths()["stdlib"])]
    print("", *LETTERS, sep="\t")
    for before, row in evidence(pairs(texts(folders))).items():
        print(before, *row, sep="\t")


if __name__ == "__main__":
    main()

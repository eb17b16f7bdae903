"""Words that people make passwords, hosts and file names of."""

from __future__ import annotations

from random import Random

WORD_LIST = (
    "amber anchor apple arrow autumn badge bamboo banner barrel basket beacon bishop bottle breeze bridge bronze "
    "butter cactus camera candle canyon carbon castle cherry cinema circle cobalt coffee copper cotton cradle crayon "
    "dancer desert dinner donkey dragon eagle ember engine falcon father finger flower forest fossil galaxy garden "
    "ginger glacier guitar hammer harbor hazard helmet hockey honey hunter island jacket jaguar jungle kernel kitten "
    "ladder lagoon lemon lizard magnet maple marble meadow mirror monkey morning mother nature needle ocean orange "
    "orchid oyster paddle panda pepper picnic pilot planet pocket prairie puzzle rabbit ribbon river rocket saddle "
    "salmon school shadow silver sister socket spider spirit spring summer sunset temple thunder tiger timber tomato "
    "tunnel turtle valley velvet violet walnut window winter wizard yellow zebra zipper"
)
WORDS = WORD_LIST.split()


def chosen_word(random: Random) -> str:
    return random.choice(WORDS)

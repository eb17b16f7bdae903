"""Whether a reader could know that a value is a secret, by the value or by what stands around it.

A bare UUID is an order's number as often as a key, bare lower-case hex a digest, and a word a word. Where nothing near
them says what they are, taking them would be wrong as often as right: such cases are counted apart and never hidden.
The question is put to the text alone, before and without redaction.
"""

from __future__ import annotations

import re

from curate.corpus.judge import decodings
from curate.corpus.kind import Planted

MUTE = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?:0x)?[0-9a-f]{12,}")
CUE = re.compile(
    r"secret|token|key|passw|passphrase|passcode|pass\b|pwd\b|\bpw\b|auth|credential|\bcreds?\b|"
    r"log ?in\b|sign ?in\b|\b40[13]\b|denied|bearer|cookie|session|sid\b|licen[cs]e|mnemonic|seed|mfa|otp|2fa|"
    r"hook|private|hard-?coded|leak|rotate|revoke|vault|curl -u |mysql .*-p",
    re.IGNORECASE,
)


def decidable(text: str, planted: Planted) -> bool:
    """Whether the value itself or a word of the text, in any decoding, tells a reader that this is a secret."""
    if planted.kind.form != "password" and not MUTE.fullmatch(planted.text):
        return True
    return any(CUE.search(view.replace(planted.text, " ")) for view in decodings(text))

"""A corpus of made-up secrets in the contexts of agent transcripts, to measure redaction with.

Every value is drawn from a seeded generator that follows the documented shape of its kind: no secret of anybody's is
in here, and none is written out. Shapes are facts of the providers' public documentation and of the public rule lists
of Kingfisher (Apache-2.0) and Betterleaks (MIT); words and programs are our own.

**The split.** Kinds are grouped in rule families: kinds that one rule or one idea of a rule would find together, such
as the keys of one group of providers. A family is tuned or held out as a whole, so that no kind is found because its
sibling was looked at. Contexts are split one by one. `tuned_kinds`, `tuned_contexts` and `tuned_lookalikes` may be
read by whoever writes rules; `held_out_kinds`, `held_out_contexts` and `held_out_lookalikes` may not. 11 of 26 families
and 28 of 52 contexts are held out, hard ones among them on purpose; which they are is told in those files alone.

**Versions.** Version 1 fixed the split before the first measurement.

Version 2 moved what was found worst to the tuned side: the families "passwords of people", "UUIDs as keys" and
"wallets, licences, second factors", and the contexts "commit message", "chat paste", "wrapped terminal", "prose" and
"Java properties". Four new families and fourteen new contexts took their place, written without looking at any rule and
fixed before they were measured.

Version 3 moved the families "passwords by pattern", "recovery codes" and "keys at rest", all new in version 2, since
their nature was told to whoever writes rules in general words, and the context "wrapped table cell". Nothing took their
place.

`FIRST_MET` says what share of each was removed before it was moved. Every move takes out what was found badly, so a
share over what is left is the better for it: shares of two versions do not compare, and the headline is to be read
beside `FIRST_MET`.

**What nobody could know.** A bare UUID, lower-case hex or word where no word of the text says what it is may as well be
an order's number or a digest. `curate.corpus.decidable` asks this of the text alone, before redaction; such cases are
in no cell and are told apart, with their number and share, and so is what the headline would be with them.

**The protocol.** Rules are written without reading the held-out files and without seeing which of their cases were
missed: whoever writes rules gets totals of the held-out cells only. A release draws a new seed. Whoever tunes a rule on
a held-out kind or context moves its family or context to `tuned`.

**The cells.** Held-out kinds in held-out contexts are the headline; held-out kinds in tuned contexts, tuned kinds in
held-out contexts and tuned kinds in tuned contexts are told beside it. Many held-out kinds have a rule of their own in
the scanner's list (betterleaks 2.0, which redaction runs): they are not tuned by us, but are no news to the scanner
either. The share of kinds without any such rule is told apart: it is the hardest number.
"""

VERSION = "3"

FIRST_MET = {
    "passwords of people": 0.672,
    "UUIDs as keys": 0.875,
    "wallets, licences, second factors": 0.911,
    "commit message": 0.78,
    "chat paste": 0.839,
    "wrapped terminal": 0.872,
    "prose": 0.866,
    "Java properties": 0.968,
    "passwords by pattern": 0.423,
    "recovery codes": 0.355,
    "keys at rest": 0.789,
    "wrapped table cell": 0.624,
}
"""Family or context that was moved to the tuned side → share removed in the held-out cell just before: the first eight
by rules 2 on corpus 1, the others by rules 3 on corpus 2, each at the seed that was shipped with it."""

"""Secrets that are known by their own shape, wherever they stand: provider keys, tokens, private keys.

Shapes are as the providers document or print them. Finding is in two steps, because one pass of a hundred
alternatives over every character is slow and keys are rare: every shape holds an unbroken run of at least 20 key
characters or a random-looking stretch, these are 5 % of a transcript, and only a text in which they answer is searched
as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from curate.anchors import Anchors
from curate.glance import Glance
from curate.randomness import bits

_LONGEST = 4_000  # characters
_SHORTEST = 12  # characters: less than that of a key that was cut off helps nobody

SEEN, SHAPE, SCANNED, PLACE, ASSIGNED, LOOKS = range(6)
"""Ranks of findings, surest first: seen by the recorder or named by the recipe, a shape, the scanner, a telling place,
a telling name, looks and surroundings alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A secret at text[start:end]. `value` names it: the same secret has the same value wherever it is found."""

    start: int
    end: int
    kind: str
    rank: int
    value: str
    rest: bool = False  # a later piece of a secret that was cut up: it goes, and the first piece's placeholder speaks


_W = r"[A-Za-z0-9_-]"
_A = r"[A-Za-z0-9]"
_H = r"[0-9a-fA-F]"

# Kind, fixed first letters, what follows them, and whether the key may start inside a word: first letters may also end
# one ("task-", "shelf_"), so only telling ones may.
_SHAPES: tuple[tuple[str, str, str, bool], ...] = (
    ("anthropic_api_key", "sk-ant-", rf"{_W}{{16,}}", True),
    ("openrouter_api_key", "sk-or-v1-", rf"{_H}{{32,}}", True),
    ("openai_api_key", "sk-proj- sk-svcacct- sk-admin- sk-service- sk-None-", rf"{_W}{{20,}}", True),
    ("secret_key", "sk-", rf"(?:[a-z]{{2,12}}-)?{_A}{{24,}}", False),
    ("openai_session", "sess-", rf"{_A}{{40}}", False),
    ("github_pat", "github_pat_", r"[A-Za-z0-9_]{22,}", True),
    ("github_token", "ghp_ gho_ ghu_ ghs_ ghr_", rf"{_A}{{30,}}", True),
    (
        "gitlab_token",
        "glpat- glptt- gldt- glrt- glrtr- glcbt- glagent- gloas- glsoat- glft- glimt- glffct-",
        rf"{_W}{{18,}}(?:\.{_W}{{6,}}){{0,2}}",
        True,
    ),
    ("aws_access_key_id", "AKIA ASIA ABIA ACCA", r"[A-Z2-7]{16}(?![A-Za-z0-9])", True),
    ("aws_bedrock_key", "ABSK", r"[A-Za-z0-9+/]{80,}={0,2}", False),
    ("google_api_key", "AIza", rf"{_W}{{35}}", True),
    ("google_oauth", "ya29. GOCSPX-", rf"{_W}{{20,}}", True),
    ("google_oauth", "1//0", rf"{_W}{{40,}}", False),
    ("slack_token", "xoxa xoxb xoxe xoxo xoxp xoxr xoxs", r"(?:\.xox[bp])?-[A-Za-z0-9-]{14,}", True),
    ("slack_token", "xapp-", r"\d-[A-Za-z0-9-]{20,}", True),
    ("slack_webhook", "hooks.slack.com/", r"(?:services|workflows|triggers)/[A-Za-z0-9_/+-]{20,}", True),
    ("discord_webhook", "discord.com/api/ discordapp.com/api/", rf"(?:v\d+/)?webhooks/\d{{15,}}/{_W}{{40,}}", True),
    ("teams_webhook", "webhook.office.com/", r"webhookb2/[A-Za-z0-9@-]{36,}/IncomingWebhook/[A-Za-z0-9/-]{24,}", True),
    ("stripe_key", "sk_live_ sk_test_ sk_prod_ rk_live_ rk_test_ rk_prod_", rf"{_A}{{16,}}", True),
    ("stripe_webhook_secret", "whsec_", r"[A-Za-z0-9+/=]{24,}", True),
    ("square_token", "sq0atp- sq0csp- sq0idp-", rf"{_W}{{22,}}", True),
    ("shopify_token", "shpat_ shpca_ shppa_ shpss_ shpua_", rf"{_H}{{32,}}", True),
    ("npm_token", "npm_", rf"{_A}{{36}}", False),
    ("pypi_token", "pypi-AgE", rf"{_W}{{50,}}", True),
    ("rubygems_token", "rubygems_", rf"{_H}{{48}}", True),
    ("crates_token", "cio", rf"{_A}{{32}}(?!{_A})", False),
    ("docker_token", "dckr_pat_ dckr_oat_", rf"{_W}{{27,}}", True),
    ("huggingface_token", "hf_ api_org_", rf"{_A}{{30,}}", False),
    ("groq_api_key", "gsk_", rf"{_A}{{40,}}", False),
    ("xai_api_key", "xai-", rf"{_A}{{60,}}", False),
    ("perplexity_api_key", "pplx-", rf"{_A}{{40,}}", False),
    ("replicate_token", "r8_", rf"{_A}{{37}}", False),
    ("nvidia_api_key", "nvapi-", rf"{_W}{{60,}}", False),
    ("cerebras_api_key", "csk-", rf"{_A}{{40,}}", False),
    ("tavily_api_key", "tvly-", rf"(?:dev-|prod-)?{_A}{{28,}}", False),
    ("sendgrid_key", "SG.", rf"{_W}{{16,32}}\.{_W}{{30,64}}", False),
    ("twilio_key", "SK", r"[0-9a-f]{32}(?![0-9A-Za-z])", False),
    ("mailgun_key", "key-", r"[0-9a-f]{32}(?![0-9A-Za-z])", False),
    ("digitalocean_token", "doo_v1_ dop_v1_ dor_v1_", r"[0-9a-f]{64}", True),
    ("databricks_token", "dapi", r"[0-9a-f]{32}(?:-\d)?", False),
    ("session_cookie", "s%3A", rf"{_W}{{20,}}\.[A-Za-z0-9_%+/=-]{{20,}}", False),  # signed, as Express does
    ("linear_token", "lin_api_ lin_oauth_", rf"{_A}{{32,}}", True),
    ("notion_token", "ntn_", rf"{_A}{{40,}}", False),
    ("notion_token", "secret_", rf"{_A}{{43}}(?!{_A})", False),
    ("airtable_token", "pat", rf"{_A}{{14}}\.[0-9a-f]{{64}}", False),
    ("grafana_token", "glsa_", rf"{_A}{{32}}_{_H}{{8}}", True),
    ("grafana_token", "glc_eyJ", r"[A-Za-z0-9+/=]{40,}", True),
    ("sentry_token", "sntrys_ sntryu_", r"[A-Za-z0-9_+/=-]{40,}", True),
    ("newrelic_key", "NRAK-", rf"{_A}{{27}}", True),
    ("postman_key", "PMAK-", r"[0-9a-f]{24}-[0-9a-f]{34}", True),
    ("planetscale_token", "pscale_tkn_ pscale_pw_ pscale_oauth_", rf"{_W}{{32,}}", True),
    ("supabase_token", "sbp_", r"[0-9a-f]{40}", False),
    ("supabase_token", "sb_secret_", rf"{_W}{{20,}}", True),
    ("doppler_token", "dp.", r"(?:pt|st|sa|ct|scim|audit)\.[A-Za-z0-9_.-]{40,}", False),
    ("dynatrace_token", "dt0", r"[a-z]\d{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64}", True),
    ("heroku_key", "HRKU-", rf"{_W}{{36,}}", True),
    ("atlassian_token", "ATATT3", r"[A-Za-z0-9_=-]{50,}", True),
    ("atlassian_token", "ATBB", rf"{_A}{{28,}}", False),
    ("figma_token", "figd_", rf"{_W}{{36,}}", True),
    ("tailscale_key", "tskey-", rf"[a-z]+-{_W}{{16,}}", True),
    ("pulumi_token", "pul-", r"[0-9a-f]{40}", False),
    ("vault_token", "hvs. hvb. hvr.", rf"{_W}{{24,}}", False),
    ("minisign_secret_key", "RWRTY0Iy", r"[A-Za-z0-9+/]{30,}={0,2}", True),
    ("age_secret_key", "AGE-SECRET-KEY-1", r"[0-9A-Z]{58}", True),
    ("jwt", "eyJ", rf"{_W}{{8,}}\.{_W}{{8,}}\.{_W}{{8,}}(?:\.{_W}{{8,}}){{0,2}}", False),
    (
        "private_key",
        "b3BlbnNzaC1rZXktdjE",  # the magic of an OpenSSH key, in base64
        r"[A-Za-z0-9+/=]{20,}(?:(?:\s|\\+[nr])+[A-Za-z0-9+/=]{16,})*",
        True,
    ),
)

# The same, for shapes whose fixed letters stand inside: what must be in the text comes first.
_INNER_SHAPES: tuple[tuple[str, str, re.Pattern[str]], ...] = (
    ("T3BlbkFJ", "openai_api_key", re.compile(rf"sk-{_W}{{10,}}T3BlbkFJ{_W}{{16,}}|{_A}{{16,64}}T3BlbkFJ{_W}{{16,}}")),
    (":AA", "telegram_token", re.compile(rf"(?<!\d)\d{{8,10}}:AA{_W}{{32,34}}")),
    ("-us", "mailchimp_key", re.compile(r"(?<![0-9a-f])[0-9a-f]{32}-us\d{1,2}(?!\d)")),
    (".atlasv1.", "terraform_token", re.compile(rf"{_A}{{14}}\.atlasv1\.[A-Za-z0-9_=-]{{60,}}")),
    ("Q~", "azure_client_secret", re.compile(r"[A-Za-z0-9_~.-]{3}[78]Q~[A-Za-z0-9_~.-]{31,34}")),
)
# Recovery keys in groups: BitLocker's, FileVault's, that of a password manager.
_RECOVERY = re.compile(
    r"(?<![\w-])(?:\d{6}(?:-\d{6}){7}|(?=[A-Z-]*\d)(?=[\d-]*[A-Z])[A-Z0-9]{4}(?:-[A-Z0-9]{4}){5}"
    r"|A3-[A-Z0-9]{6}(?:-[A-Z0-9]{5,6}){5})(?![\w-])"
)
_IN_GROUPS = re.compile(r"-[A-Z0-9]{4,6}-[A-Z0-9]{4,6}-[A-Z0-9]{4,6}-")  # what they share
_DISCORD = re.compile(rf"[MNO]{_W}{{23,27}}\.{_W}{{6}}\.{_W}{{27,40}}")

_BY_PREFIX = {
    prefix: (kind, re.compile(re.escape(prefix) + rest), inside)
    for kind, prefixes, rest, inside in _SHAPES
    for prefix in prefixes.split()
}
# Words to look for together have three letters at least.
_WORDS_OF = {
    prefix: [(prefix + end).encode() for end in ("0123456789abcdef" if len(prefix) < 3 else ("",))]
    for prefix in _BY_PREFIX
}
_PREFIXES = Anchors(word for words in _WORDS_OF.values() for word in words)
_MANY_LETTERS = 1_000  # below, looking for each in turn is faster
# A key that an output's limit cut off: `sk-ant-api03-abcd…`, `ghp_wJ4kQz8LmN...`, or the end of the text.
_CUT = {
    prefix: re.compile(
        re.escape(prefix) + rf"(?=[A-Za-z_-]*[0-9A-Z]){_W}{{{max(6, _SHORTEST - len(prefix))},}}"
        r"(?=\.{2,}|…|\\u2026|\Z|\n\n|[ \t]*[\[<(]{1,2}(?:truncated|cut|\.{3}|…|omitted)|\*{3,})"
    )
    for prefix in _BY_PREFIX
    if not (prefix.isalpha() and prefix.islower())  # words begin so
}
_CUT_BITS = 10
# A key has a digit, or both cases within a word; a dotted name or a ruled line has not.
_RANDOM = re.compile(r"[0-9]|[a-z][A-Z]")
_REMEMBERED_RUN = 80  # letters: code repeats its names

# Between the lines of a key: new lines, however often escaped; line numbers and quote marks of a tool's output.
_BREAK = r"(?:(?:(?:\s|\\+[nrt])++(?:\d{1,6}(?:→|\||:|\t|\\+t)[ \t]*)?+(?:[>|#*] |[+-](?=[\sA-Za-z0-9+/=\\]))?+)++)"
_HEADERS = rf"(?:{_BREAK}(?:Proc-Type|DEK-Info|Comment|Version|Hash): [^\r\n\\\"]{{0,80}})*+"
_PEM_END = r"-----END[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_PEM = re.compile(
    rf"-----BEGIN[A-Z0-9 ]{{0,40}}PRIVATE KEY(?: BLOCK)?-----{_HEADERS}(?:{_BREAK}?+[A-Za-z0-9+/=]{{16,}}+)++"
    # Its end behind a short line and a checksum, or, where the output was cut, at most a last line that shows by its
    # padding that it belongs.
    rf"(?:(?:{_BREAK}[A-Za-z0-9+/=]{{1,76}}){{0,2}}+{_BREAK}?+[+-]?{_PEM_END}|(?:{_BREAK}[A-Za-z0-9+/]{{1,75}}={{1,2}})?+)"
)
# What a PuTTY key file holds of a private key, and the sum behind it.
_PUTTY = re.compile(
    rf"Private-Lines: \d{{1,3}}(?P<value>(?:{_BREAK}[A-Za-z0-9+/=]{{2,}}+(?![:-]))++"
    rf"(?:{_BREAK}Private-MAC: ?[0-9a-fA-F]{{32,64}})?)"
)
_PEM_END_ONLY = re.compile(_PEM_END)
_BASE64_LINE = re.compile(r"(?<!\\)[A-Za-z0-9+/=]+")  # not the letter of an escaped new line
_BREAK_ONLY = re.compile(r"(?:\s|\\+[nrt])+")
_BREAK_BEFORE = re.compile(_BREAK)
_LONGEST_TAIL = 8_000  # characters
# A private key without its first line: how the DER of PKCS#1, PKCS#8 and SEC 1 begins in base64.
_DER_MAGIC = re.compile(r"MI(?:[I-L][A-Za-z0-9+/]{2}[AQgw]IBA|GHAgEA|GkAgEBBDA)|MHcCAQEE|MC4CAQAwBQYDK2Vw")
_DER = re.compile(
    rf"(?:{_DER_MAGIC.pattern})"
    rf"[A-Za-z0-9+/]{{16,}}={{0,2}}(?:{_BREAK}[A-Za-z0-9+/]{{16,}}={{0,2}})*+(?:{_BREAK}[A-Za-z0-9+/]{{1,15}}={{1,2}})?+"
)
_CRYPTED = re.compile(
    r"\$(?:2[abxy]?\$\d\d\$[./A-Za-z0-9]{20,}|(?:1|5|6|y|apr1)\$[./A-Za-z0-9$=,]{20,}"
    r"|(?:argon2\w*|scrypt)\$[./A-Za-z0-9$=,+]{20,})"
)
_AWS_SECRET = re.compile(
    r"(?<![A-Za-z0-9/+=])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])|(?<=\\[nrt])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"
)
_AWS_NEAR = 400  # characters around a key id: `aws configure list`, a credentials file, a JSON reply


def find_shapes(glance: Glance) -> list[Finding]:
    """Findings in a text by shape alone."""
    text = glance.text
    findings: list[Finding] = []
    spots = [text[begin:end] for begin, end, _ in glance.spots if _SHORTEST <= end - begin <= _LONGEST]
    runs = [run for run in glance.runs if _is_worth(run)]
    joined = "\n".join((*runs, *spots))
    for prefix in _prefixes_in(joined):
        kind, pattern, inside = _BY_PREFIX[prefix]
        findings += [
            _finding(match.start(), match.end(), kind, text)
            for match in (pattern.finditer(text) if inside else _at_edges(text, prefix, pattern))
            if not is_made_up(match.group())
        ]
        findings += [
            _finding(match.start(), match.end(), kind, text)
            for match in (_CUT[prefix].finditer(text) if prefix in _CUT else ())
            if _is_cut(glance, match) and (inside or _is_edge(text, match.start()))
        ]
    inner = [(kind, pattern) for needle, kind, pattern in _INNER_SHAPES if needle in joined]
    if _DISCORD.search(joined):
        inner.append(("discord_token", _DISCORD))
    if _IN_GROUPS.search(joined):
        findings += [_finding(*match.span(), "recovery_code", text) for match in _RECOVERY.finditer(text)]
    for kind, pattern in inner:
        findings += [
            _finding(match.start(), match.end(), kind, text)
            for match in pattern.finditer(text)
            if is_mixed(match.group()) or kind == "mailchimp_key"
            if kind != "discord_token" or _is_edge(text, match.start())
        ]
    findings += [
        _finding(secret.start(), secret.end(), "aws_secret_access_key", text)
        for key_id in findings
        if key_id.kind == "aws_access_key_id"
        for secret in _AWS_SECRET.finditer(text, max(0, key_id.start - _AWS_NEAR), key_id.end + _AWS_NEAR)
        if is_mixed(secret.group())
    ]
    findings += _private_keys(glance, joined)
    # Password hashes of crypt(3) and its kin, as in /etc/shadow or htpasswd.
    if any(text[max(0, begin - 3) : begin].count("$") for begin, _, _ in glance.spots):
        findings += [_finding(*match.span(), "password_hash", text) for match in _CRYPTED.finditer(text)]
    return findings


def _prefixes_in(joined: str) -> list[str]:
    """The first letters of shapes that are in a text, in the table's order."""
    if len(joined) < _MANY_LETTERS:
        return [prefix for prefix in _BY_PREFIX if prefix in joined]
    found = _PREFIXES.find(joined.encode("ascii", "replace"))
    return [prefix for prefix in _BY_PREFIX if any(word in found for word in _WORDS_OF[prefix])]


def _is_worth(run: str) -> bool:
    """Whether a run may be a key."""
    if len(run) <= _REMEMBERED_RUN:
        return _is_random(run)
    return _RANDOM.search(run) is not None and (len(run) <= _LONGEST or not _is_file(run))


@lru_cache(maxsize=1 << 16)
def _is_random(run: str) -> bool:
    return _RANDOM.search(run) is not None


def _is_cut(glance: Glance, match: re.Match[str]) -> bool:
    """Whether what begins like a key is the rest of one; a paragraph's end is a text's end in a heap of texts only."""
    if glance.text.startswith("\n\n", match.end()) and not glance.heap:
        return False
    return bits(match[0]) >= _CUT_BITS and not is_made_up(match[0])


def _is_file(run: str) -> bool:
    """Whether a long run is an encoded file, which is decoded before anything is looked for in it."""
    return run.rstrip("=").replace("+", "a").replace("/", "a").isalnum()


def _private_keys(glance: Glance, joined: str) -> Iterator[Finding]:
    text = glance.text
    if glance.at(b"private key"):
        for match in _PEM.finditer(text):
            if "XXXX" not in match[0]:
                yield _finding(*match.span(), "private_key", text)
        for marker in _PEM_END_ONLY.finditer(text):
            start = _tail_start(text, marker.start())
            if start < marker.start() and "XXXX" not in text[start : marker.start()]:
                yield _finding(start, marker.end(), "private_key", text)
    if glance.at(b"private-lines"):
        for match in _PUTTY.finditer(text):
            begin = match.start("value") + len(_BREAK_BEFORE.match(match["value"])[0])  # type: ignore[index]
            yield _finding(begin, match.end(), "private_key", text)
    if _DER_MAGIC.search(joined):
        for match in _DER.finditer(text):
            yield _finding(*match.span(), "private_key", text)


def _at_edges(text: str, prefix: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Matches that start where a word may start; the check comes first, so that a long word is passed over once."""
    at = text.find(prefix)
    while at >= 0:
        match = pattern.match(text, at) if _is_edge(text, at) else None
        if match is not None:
            yield match
        at = text.find(prefix, match.end() if match else at + 1)


def _tail_start(text: str, end: int) -> int:
    """Where the lines of a private key begin whose end marker is at `end` and whose start was cut off."""
    start = end
    for line in reversed(list(_BASE64_LINE.finditer(text, max(0, end - _LONGEST_TAIL), end))):
        is_last = start == end
        if _BREAK_ONLY.fullmatch(text, line.end(), start) is None or (len(line[0]) < 16 and not is_last):
            break
        start = line.start()
    return start


def _finding(start: int, end: int, kind: str, text: str) -> Finding:
    return Finding(start=start, end=end, kind=kind, rank=SHAPE, value=text[start:end])


def _is_edge(text: str, start: int) -> bool:
    """Whether a word may start here: not after a letter or digit, unless that is an escape (`\\n` in JSON text)."""
    if start == 0:
        return True
    before = text[start - 1]
    return not (before.isascii() and before.isalnum()) or (before in "nrtbf" and text[start - 2 : start - 1] == "\\")


def is_made_up(value: str) -> bool:
    """Whether a key-shaped value is an example: `sk-ant-xxxx…`, AWS's own `…EXAMPLE`."""
    return "EXAMPLE" in value or "xxxxxx" in value.lower() or len(set(value[-16:])) < 5


def is_mixed(value: str) -> bool:
    """Whether a value has upper case, lower case and digits, as random base64 has and a digest or a path has not."""
    return value != value.lower() and value != value.upper() and any(map(str.isdigit, value)) and value.count("/") <= 4

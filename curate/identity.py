"""Who and where: e-mails, user names, home paths, host names, private addresses, git remotes become pseudonyms.

A pseudonym is keyed and stable: `/home/ann/x.py` becomes `/home/user-3f2a1b/x.py` wherever it stands, so a path stays
the same path. What a text tells once in a telling place (a home path, a prompt, an author line) is replaced everywhere
in its session as a whole word. Names that every machine has (`root`, `ubuntu`, `runner`) stay, as do public hosts and
repositories that the session only mentions; those that it clones, pushes to or has as its remote are replaced.
Pseudonymous e-mails and hosts end in `.invalid` (RFC 2606), addresses lie in 198.18.0.0/15 (RFC 2544).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Iterator

from curate.glance import Glance
from curate.shapes import LOOKS, Finding

VERSION = 1
KINDS = frozenset({"email", "user", "host", "repository", "address"})

# fmt: off
_EVERYBODY = frozenset({
    "root", "user", "users", "ubuntu", "debian", "centos", "fedora", "ec2-user", "runner", "node", "admin",
    "administrator", "test", "tests", "app", "dev", "developer", "vscode", "codespace", "gitpod", "git", "public",
    "shared", "default", "guest", "nobody", "daemon", "bin", "sys", "www-data", "postgres", "mysql", "redis",
    "nginx", "docker", "jenkins", "circleci", "travis", "vagrant", "pi", "oracle", "azureuser", "opc", "core",
    "linuxbrew", "coder", "jovyan", "sandbox", "agent", "worker", "build", "builder", "ci", "staff", "wheel",
    "username", "name", "you", "me", "home", "your-name", "yourname", "your_name", "myuser", "someone", "example",
    "foo", "bar", "baz", "x", "xxx", "service", "system", "local", "default.migrated",
    "defaultapppool", "claude", "codex", "openai", "anthropic", "cursor", "copilot", "github", "actions", "bot",
    "robot", "support", "info", "mail", "owner", "group", "none", "null", "total", "self", "this", "somebody",
    "workspace", "user-name", "<user>", "unknown", "localhost", "host", "hostname", "server", "everyone", "python",
    "ruby", "rails", "django", "airflow", "spark", "hadoop", "deploy", "ansible", "kali", "arch", "alpine",
    "openclaw", "swebench", "nonroot",
})
# Names that are words of languages: replaced in a path or a prompt, but not wherever the word stands.
_WORDS = frozenset({
    "max", "min", "mark", "will", "bill", "grace", "rob", "art", "drew", "chase", "dean", "grant", "jack", "rose",
    "sam", "pat", "jay", "ray", "lane", "hunter", "chip", "joy", "hope", "faith", "dawn", "eve", "may", "june",
    "april", "august", "summer", "miles", "mason", "cooper", "baker", "carter", "cook", "cole", "frank", "ernest",
    "gene", "bob", "tom", "tim", "dan", "ben", "lee", "kit", "rich", "nick", "dick", "peter", "scott", "ruby",
    "crystal", "pearl", "amber", "iris", "lily", "violet", "data", "code", "work", "main", "base", "temp", "file",
    "files", "project", "projects", "repo", "src", "docs", "master", "model", "models", "client", "object",
    "string", "value", "print", "filter", "map", "list", "dict", "type", "class", "import", "return", "error",
    "tools", "tool", "time", "date", "page", "index", "input", "output", "open", "read", "write", "media",
    "storage",
})
_PUBLIC_MAIL = frozenset({"example.com", "example.org", "example.net", "localhost"})
_NO_DOMAIN = frozenset({
    "png", "jpg", "jpeg", "gif", "svg", "webp", "js", "ts", "jsx", "tsx", "mjs", "cjs", "py", "rs", "go", "rb",
    "java", "css", "scss", "html", "md", "json", "yaml", "yml", "toml", "lock", "txt", "sh", "so", "service",
    "target", "timer", "socket", "test", "example", "invalid", "localhost", "local", "git",
})
# fmt: on


def _compile(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """A pattern whose words may also begin behind the letter of an escape, as in `\\nUSER=ann` of JSON text."""
    for edge in (r"\b", r"(?<![\w.@/:-])", r"(?<![\w.@/-])"):
        pattern = pattern.replace(edge, rf"(?:{edge}|(?<=\\[nrt]))")
    return re.compile(pattern, flags)


_ROLE = _compile(r"(?:no-?reply|do-?not-?reply|git|actions|bot|hg|svn)\Z|.*\[bot\]\Z", re.IGNORECASE)
_PSEUDONYM = _compile(r"(?:user|host|org|repo|mail)-[0-9a-f]{6}(?:\.invalid)?")
_MARK = _compile(
    r"user-[0-9a-f]{6}@mail-[0-9a-f]{6}\.invalid|host-[0-9a-f]{6}\.invalid|org-[0-9a-f]{6}/repo-[0-9a-f]{6}"
    r"|user-[0-9a-f]{6}|198\.1[89]\.\d{1,3}\.\d{1,3}"
)
_MARK_STARTS = ("user-", "host-", "org-", "198.1")

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9-]{1,63}){0,6}"
_PRIVATE_SUFFIX = r"\.(?:local|internal|corp|lan|intranet|intra|localdomain|private|home\.arpa)"
_SEPARATOR = r"(?:/|\\{1,8})"
_HOME = _compile(
    rf"(?:{_SEPARATOR}(?:home|Users|users){_SEPARATOR})"
    rf"(?P<user>[A-Za-z0-9_](?:[A-Za-z0-9_.-]|(?<=\w) (?=\w+(?: \w+)?\\)){{0,39}})"
)
_FLAT_HOME = _compile(r"(?<![A-Za-z0-9])-(?:home|Users)-(?P<user>[A-Za-z0-9_]{1,32})(?![A-Za-z0-9_])")
_EMAIL = _compile(
    r"[A-Za-z0-9_](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+])?(?P<at>@)"
    r"(?P<domain>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,6}[A-Za-z]{2,18})(?![A-Za-z0-9-]|\.[A-Za-z])"
)
_PROMPT = _compile(
    rf"(?<![\w.@/:-])(?P<user>[a-z_][a-z0-9_.-]{{0,31}})@(?P<host>{_HOST})"
    r"(?=:[~/]|[ \t]+(?:~|/)[^\n]{0,80}?[$#%❯➜]|(?: [\w~/.-]+)?\][$#]|[$#][ \t])"
)
_SSH = _compile(
    rf"\b(?:ssh|scp|rsync|sftp|mosh|ssh-copy-id)\b[^\n]{{0,160}}?(?<![\w.@/-])(?P<user>{_NAME})@(?P<host>{_HOST})"
)
_URL_HOST = _compile(
    rf"(?:://(?:[^\s/@\"'<>]{{1,80}}@)?|@)(?P<host>[A-Za-z0-9][A-Za-z0-9.-]{{0,80}}{_PRIVATE_SUFFIX})(?![\w-])",
    re.IGNORECASE,
)
_BARE_HOST = _compile(
    rf"(?<![\w.@/-])(?P<host>(?=[a-z0-9.-]*[0-9-])[a-z0-9][a-z0-9-]{{1,62}}(?:\.[a-z0-9-]{{1,63}}){{0,4}}{_PRIVATE_SUFFIX})"
    r"(?![\w(=-]|\.[a-z])"
)
_AUTHOR = _compile(
    r"(?:author|committer|tagger|commit|signed-off-by|co-authored-by|reviewed-by|acked-by|reported-by|tested-by)"
    r"(?:[:=][ \t]*|[ \t]+)(?P<user>[^\s<>\"'\\:=][^<>\"'\\\n:=]{0,60}?)[ \t]+<[^<>\s@]{1,64}@",
    re.IGNORECASE,
)
_GIT_NAME = _compile(r"user\.name[ \t]*(?:=[ \t]*)?(?:\\*[\"'])?(?P<user>[^\s\"'\\=][^\"'\\\n=]{0,60})")
_WHOAMI = _compile(
    r"(?:\bwhoami(?:\s|\\+n)+(?:[$#>][^\n]*\n)?|\buid=\d+\(|\b(?:USER|LOGNAME|USERNAME|SUDO_USER)=[\"']?|"
    r"\blogged in as[ \t]+|"
    rf"\blogged in to [\w.-]+ (?:account|as)[ \t]+)(?P<user>{_NAME})(?=[\s\"')\\;,(]|\Z)",
)
_OWNER = _compile(
    r"(?:^|\n|\\+n)[dlbcps-][rwxsStT-]{9}[.+@]?[ \t]+\d+[ \t]+(?P<user>\S{2,32})[ \t]+(?P<group>\S{2,32})[ \t]+\d"
)
_PASSWD = _compile(rf"(?:^|\n|\\+n|[\"'])(?P<user>{_NAME}):[x*!]?:\d+:\d+:")
_HOSTNAME = _compile(
    r"(?:\bHOSTNAME=|\bhostname:?[ \t]+(?=\S*[0-9.-])|\bhostname(?:\n|\\+n)|\bHost(?:name|Name)[ \t]+"
    rf"|\bLinux[ \t]+(?=\S+[ \t]+\d\.))(?P<host>{_HOST})"
    r"(?=[\s\"'\\;,]|\Z)"
)
_REMOTE = _compile(
    rf"(?:git@|ssh://(?:[\w.-]+@)?)(?P<host>{_HOST})(?::\d+)?[:/](?P<repository>[\w.~-]+(?:/[\w.-]+)+?)(?:\.git)?(?=[\s\"'`)>,;\\]|\Z)"
)
_REMOTE_URL = _compile(
    r"(?:\b(?:origin|upstream|fork)(?:[ \t]|\\+t)+"
    r"|\bgit (?:clone|push|pull|fetch|ls-remote|remote add|remote set-url)\b[^\n]{0,80}?"
    r"|(?:^|\n|\\+n)(?:To|From)[ \t]+|\burl[ \t]*=[ \t]*|\bCloning into[^\n]{0,80}?"
    r"|\"(?:remote|repository|repo|origin|git_?url)_?(?:url)?\\*\"[ \t]*:[ \t]*\\*\")"
    rf"(?P<scheme>https?://)(?:[^\s/@\"']{{1,80}}@)?(?P<host>{_HOST})(?::\d+)?/"
    r"(?P<repository>[\w.~-]+(?:/[\w.-]+)+?)(?:\.git)?(?=[\s\"'`)>,;\\]|\Z)"
)
_ADDRESS = _compile(r"(?<![\d.])(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}(?![\d]|\.\d)")
_PUBLIC_HOST = _compile(
    r"(?:.*\.)?(?:github\.com|gitlab\.com|bitbucket\.org|codeberg\.org|sr\.ht|huggingface\.co|gitee\.com|launchpad\.net|"
    r"sourceforge\.net|dev\.azure\.com|visualstudio\.com|googlesource\.com)\Z",
    re.IGNORECASE,
)
_MACHINE_HOST = _compile(
    r"(?:host|gateway|kubernetes)\.docker\.internal|metadata\.google\.internal|.*\.(?:svc\.)?cluster\.local|"
    r"localhost(?:\.localdomain)?|[0-9a-f]{12}|(?:\d{1,3}\.){3}\d{1,3}|ip6-.*|broadcasthost|\d+",
    re.IGNORECASE,
)

# Words, and what is looked for in the lines that hold one.
_TELLING: tuple[tuple[tuple[bytes, ...], tuple[re.Pattern[str], ...]], ...] = (
    ((b"/home/", b"/users/", b"\\home\\", b"\\users\\"), (_HOME,)),
    ((b"-home-", b"-users-"), (_FLAT_HOME,)),
    ((b"author", b"committer", b"-by:", b"tagger"), (_AUTHOR,)),
    ((b"user.name",), (_GIT_NAME,)),
    ((b"whoami", b"uid=", b"user=", b"logname=", b"username=", b"logged in"), (_WHOAMI,)),
    ((b"rw-r", b"rwxr", b"rwx-", b"rw--", b"r-xr", b"r--r"), (_OWNER,)),
    ((b":x:1",), (_PASSWD,)),
    ((b"hostname", b"linux "), (_HOSTNAME,)),
    ((b"ssh ", b"scp ", b"rsync ", b"sftp "), (_SSH,)),
    ((b"git@", b"ssh://"), (_REMOTE,)),
    (
        (
            *(
                b"git clone",
                b"git push",
                b"git pull",
                b"git fetch",
                b"git remote",
                b"git ls-remote",
                b"origin",
                b"upstream",
            ),
            *(b"cloning into", b"to https", b"from https", b"url =", b'"remote', b'"repo', b'_url"', b'_url\\"'),
        ),
        (_REMOTE_URL,),
    ),
    ((*(b"10.%d" % digit for digit in range(10)), b"192.168.", b"172."), (_ADDRESS,)),
    ((b".local", b".internal", b".corp", b".lan", b".intra", b".private", b".home.arpa"), (_URL_HOST, _BARE_HOST)),
)
_LINE = 300  # characters of a line on either side of a word


class Names:
    """What a session tells about who and where, to be replaced wherever it stands as a word."""

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        found = {one.value: one.kind for one in findings if one.kind in ("user", "host", "repository")}
        self._kinds = {word: kind for word, kind in sorted(found.items()) if _is_own(word, kind)}
        for word, kind in list(self._kinds.items()):
            if kind == "user":  # as folders of Claude Code's projects write it
                self._kinds.setdefault(re.sub(r"[^A-Za-z0-9]", "-", word), kind)
        either = "|".join(re.escape(word) for word in sorted(self._kinds, key=lambda word: (-len(word), word)))
        # The letter of an escape may stand before it, as in `\\nann`.
        self._pattern = re.compile(rf"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))(?:{either})(?![A-Za-z0-9])")

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def find(self, glance: Glance) -> Iterator[Finding]:
        """Every such word in a text."""
        if self.are_in(glance.text):
            for match in self._pattern.finditer(glance.text):
                yield _finding(match.start(), match.end(), self._kinds[match[0]], match[0])

    def are_in(self, text: str) -> bool:
        """Whether any of them may be in a text."""
        return any(word in text for word in self._kinds)


class Identities:
    """Finds identities and names their pseudonyms under one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def find(self, glance: Glance) -> Iterator[Finding]:
        """Identities in their telling places."""
        if b"@" in glance.data:
            yield from _at_signs(glance)
        for anchors, patterns in _TELLING:
            done = 0
            for at in glance.at(*anchors):
                if at < done:
                    continue
                begin, done = _line(glance.data, max(done, at - _LINE), at)
                for pattern in patterns:
                    for match in pattern.finditer(glance.text, begin, done):
                        yield from _named(match)

    def pseudonym(self, kind: str, value: str) -> str:
        """What stands in the place of an identity."""
        if kind == "email":
            local, _, domain = value.rpartition("@")
            return f"{self._short('user', local)}@{self._short('mail', domain.lower())}.invalid"
        if kind == "host":
            return f"{self._short('host', value.lower())}.invalid"
        if kind == "repository":
            owner, _, name = value.rpartition("/")
            return f"{self._short('org', owner.lower())}/{self._short('repo', name.lower())}"
        if kind == "address":
            digest = self._digest("address", value)
            return f"198.{18 + digest[0] % 2}.{digest[1]}.{digest[2]}"
        return self._short("user", re.sub(r"[^A-Za-z0-9]", "-", value))

    def _short(self, kind: str, value: str) -> str:
        return f"{kind}-{self._digest(kind, value).hex()[:6]}"

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{kind}:{value}".encode("utf-8", "surrogatepass"), "sha256")


def pseudonyms(text: str) -> Iterator[tuple[int, int, str]]:
    """Every pseudonym of ours in a text: begin, end, kind."""
    done = 0
    for at in sorted(at for start in _MARK_STARTS for at in _finds(text, start)):
        match = _MARK.match(text, at) if at >= done else None
        if match is None:
            continue
        found, done = match[0], match.end()
        kind = (
            "email" if "@" in found
            else "host" if found.startswith("host-")
            else "repository" if found.startswith("org-")
            else "user" if found.startswith("user-")
            else "address"
        )  # fmt: skip
        yield match.start(), done, kind


def _finds(text: str, word: str) -> Iterator[int]:
    at = text.find(word)
    while at >= 0:
        yield at
        at = text.find(word, at + 1)


def _line(data: bytes, least: int, at: int) -> tuple[int, int]:
    """The stretch around a place that rules look at: its line and the next, less what is far off."""
    begin = data.rfind(b"\n", least, at)
    begin = least if begin < 0 else begin
    end = data.find(b"\n", at, at + _LINE)
    if end < 0:
        return begin, min(len(data), at + _LINE)
    after = data.find(b"\n", end + 1, end + 1 + _LINE)
    return begin, after if after >= 0 else min(len(data), end + 1 + _LINE)


def _at_signs(glance: Glance) -> Iterator[Finding]:
    """E-mails and prompts, from the sign outwards: one without a name before it is passed over at no cost."""
    text, data = glance.text, glance.data
    at = data.find(b"@")
    while at >= 0:
        start = at
        while start > 0 and at - start < 64 and data[start - 1] in _LOCAL_PART:
            start -= 1
        while start < at and data[start] in b".%+-'":
            start += 1
        if start > 0 and text[start - 1] == "\\" and text[start] in "nrtbf":
            start += 1
        if start < at:
            email = _EMAIL.match(text, start)
            if email is not None and email.start("at") == at and _is_mail(text[start:at], email["domain"].lower()):
                yield _finding(start, email.end(), "email", email[0])
            elif (prompt := _PROMPT.match(text, start)) is not None:
                yield from _named(prompt)
        at = data.find(b"@", at + 1)


_LOCAL_PART = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._%+-'"


def _is_mail(local: str, domain: str) -> bool:
    return not (
        domain in _PUBLIC_MAIL
        or domain.rpartition(".")[2] in _NO_DOMAIN
        or domain.endswith((".example.com", ".example.org", ".example.net"))
        or _ROLE.match(local)
        or local.isdigit()
    )


def _named(match: re.Match[str]) -> Iterator[Finding]:
    groups = match.groupdict()
    if match.re is _ADDRESS:
        if match[0].rpartition(".")[2] not in ("0", "1", "255") and all(
            int(part) < 256 for part in match[0].split(".")
        ):
            yield _finding(match.start(), match.end(), "address", match[0])
        return
    for kind in ("user", "group", "host", "repository"):
        value = groups.get(kind)
        if not value:
            continue
        start = match.start(kind)
        if match.re is not _HOME and value[0] in "nrtbf" and match.string[start - 1 : start] == "\\":
            start, value = start + 1, value[1:]  # the letter of an escape
        value = value.rstrip(" .-") if kind != "repository" else value.removesuffix(".git")
        if kind in ("user", "group") and _is_person(value):
            yield _finding(start, start + len(value), "user", value)
        elif kind == "host" and _is_private_host(value):
            yield _finding(start, start + len(value), "host", value)
        elif kind == "repository" and "/" in value and not _PSEUDONYM.match(value):
            yield _finding(start, start + len(value), "repository", value)


def _finding(start: int, end: int, kind: str, value: str) -> Finding:
    return Finding(start=start, end=end, kind=kind, rank=LOOKS, value=value)


def _is_person(value: str) -> bool:
    return (
        len(value) >= 2
        and value.lower() not in _EVERYBODY
        and _PSEUDONYM.fullmatch(value) is None
        and not value.isdigit()
        and any(map(str.isalpha, value))
        and not value.startswith(("$", "{", "<", "%"))
        and "[bot]" not in value
        and not value.lower().startswith("claude")
    )


def _is_private_host(value: str) -> bool:
    return (
        len(value) >= 3
        and value.lower() not in _EVERYBODY
        and _PUBLIC_HOST.match(value) is None
        and _MACHINE_HOST.fullmatch(value) is None
        and not value.endswith(".invalid")
        and _PSEUDONYM.match(value) is None
        and not value.lower().endswith(("example.com", "example.org", "example.net"))
    )


def _is_own(word: str, kind: str) -> bool:
    """Whether a name may be replaced wherever it stands as a word."""
    if kind == "repository":
        return True
    return len(word) >= (4 if kind == "host" else 3) and word.lower() not in _WORDS and word.lower() not in _EVERYBODY

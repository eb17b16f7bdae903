"""What `--power` says: `KIND[:ARGUMENT][,name=value]…`, read strictly and opened later."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal
from urllib.parse import urlsplit

from replay.power.source import PowerSource
from replay.system import UNDISCLOSED, System

type SourceKind = Literal["nvml", "rapl", "declared", "exporter", "prometheus", "remote", "command", "file"]

FORMS = (
    "nvml, nvml,scope=module, rapl, declared:700W or declared:700W*8, exporter:URL, prometheus:URL,match={…}, "
    "https://HOST:PORT,token-env=NAME, command:PROGRAM ARGUMENT… or file:PATH"
)
"""All that `--power` takes."""

_DECLARED = re.compile(r"(?P<watts>\d{1,9}(?:\.\d{1,9})?)(?P<unit>[kM]?)W(?:\*(?P<count>\d{1,6}))?")
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_OPTION = re.compile(r"[a-z]+(-[a-z]+)?")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, section 5.6.2


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerChoice:
    """A source by name, with what its kind takes; None where that was not said."""

    kind: SourceKind
    watts: float | None = None  # of a declared nameplate
    count: int = 1
    scope: Literal["accelerator", "module"] = "accelerator"  # of nvml
    url: str | None = None
    match: str | None = None  # a series selector: {name="value",…}
    table: Path | None = None  # which series are power: a user's own table
    header_env: tuple[str, str] | None = None  # a header's name, and the variable that holds its value
    token_env: str | None = None
    ca_file: Path | None = None
    words: tuple[str, ...] = ()  # of a command
    path: Path | None = None

    @property
    def text(self) -> str:
        """As it is written on the command line, less what may be secret: a command's arguments, a URL's query.

        Of a path it is the name: the folders before it may name a person.
        """
        if self.kind == "declared":
            assert self.watts is not None
            return f"declared:{self.watts:g}W*{self.count}"
        if self.kind == "command":
            return f"command:{PurePath(self.words[0]).name}"
        text: str = "" if self.kind == "remote" else self.kind
        if self.url is not None:
            text += ("" if self.kind == "remote" else ":") + _shown(self.url)
        if self.path is not None:
            text += f":{self.path.name}"
        named = {
            "scope": "module" if self.scope == "module" else None,
            "match": self.match,
            "map": self.table.name if self.table is not None else None,
            "header-env": "=".join(self.header_env) if self.header_env is not None else None,
            "token-env": self.token_env,
            "ca-file": self.ca_file.name if self.ca_file is not None else None,
        }
        return text + "".join(f",{name}={value}" for name, value in named.items() if value is not None)

    def open(self, expected: System = UNDISCLOSED) -> PowerSource:
        """Opens the source, which must show what is `expected` of it; raises PowerFault with the next step."""
        if self.kind == "nvml":
            from replay.power.nvml import NvmlSource

            return NvmlSource(uuids=expected.gpu_uuids, count=expected.gpu_count, scope=self.scope)
        if self.kind == "rapl":
            from replay.power.rapl import RaplSource

            return RaplSource()
        if self.kind == "declared":
            from replay.power.declared import DeclaredSource

            assert self.watts is not None
            return DeclaredSource(self.watts, self.count)
        if self.kind == "command":
            from replay.power.command import CommandSource

            return CommandSource(self.words)
        if self.kind == "file":
            from replay.power.file import FileSource

            assert self.path is not None
            return FileSource(self.path)
        assert self.url is not None
        if self.kind == "exporter":
            from replay.power.exporter import ExporterSource

            return ExporterSource(self.url, table=self.table, match=self.match, header_env=self.header_env)
        if self.kind == "prometheus":
            from replay.power.prometheus import PrometheusSource

            assert self.match is not None
            return PrometheusSource(self.url, match=self.match, table=self.table, header_env=self.header_env)
        from replay.power.remote import RemoteSource

        return RemoteSource(self.url, token_env=self.token_env, ca_file=self.ca_file)


def parse_powers(texts: Sequence[str]) -> tuple[PowerChoice, ...]:
    """Reads every `--power`; raises ValueError where the same source is named twice: its devices would count twice."""
    choices = tuple(parse_power(text) for text in texts)
    for choice in choices:
        if (times := choices.count(choice)) > 1:
            more = "; write a count, as in declared:700W*2" if choice.kind == "declared" else ""
            raise ValueError(f"power {choice.text} is named {times} times: each source counts once{more}")
    return choices


def parse_power(text: str) -> PowerChoice:
    """Reads one `--power` value; raises ValueError naming what is allowed. It never quotes what may be secret."""
    kind = re.match(r"[a-z]*", text)
    name = kind[0] if kind is not None else ""
    if name in ("http", "https"):
        return _remote(text)
    reader = _READERS.get(name)
    rest = text[len(name) :]
    if reader is None or rest[:1] not in ("", ":", ","):
        raise ValueError(f"power {name[:40]!r} is not known: use {FORMS}")
    return reader(rest)


def _nvml(rest: str) -> PowerChoice:
    options = _options("nvml", rest, ("scope",))
    match options.get("scope", "accelerator"):
        case "accelerator":
            return PowerChoice(kind="nvml")
        case "module":
            return PowerChoice(kind="nvml", scope="module")
    raise ValueError("power nvml: scope is accelerator or module")


def _rapl(rest: str) -> PowerChoice:
    _options("rapl", rest, ())
    return PowerChoice(kind="rapl")


def _declared(rest: str) -> PowerChoice:
    match = _DECLARED.fullmatch(rest[1:]) if rest[:1] == ":" else None
    if match is None:
        raise ValueError(
            f"power {'declared' + rest[:60]!r}: a nameplate reads declared:700W, declared:1.2kW or declared:700W*8"
        )
    watts, count = float(match["watts"]) * _SCALE[match["unit"]], int(match["count"] or 1)
    if watts <= 0 or count <= 0:
        raise ValueError(f"power {'declared' + rest!r}: watts and count must be above 0")
    return PowerChoice(kind="declared", watts=watts, count=count)


def _exporter(rest: str) -> PowerChoice:
    url, options = _argument("exporter", rest, ("map", "match", "header-env"))
    return PowerChoice(
        kind="exporter",
        url=_url("exporter", url, ("http", "https")),
        table=_path(options, "map"),
        match=_match("exporter", options),
        header_env=_header("exporter", options),
    )


def _prometheus(rest: str) -> PowerChoice:
    url, options = _argument("prometheus", rest, ("map", "match", "header-env"))
    match = _match("prometheus", options)
    if match is None:
        raise ValueError(
            'power prometheus: match is missing: say which series are this system\'s, as in match={instance="n1:9400"}'
        )
    return PowerChoice(
        kind="prometheus",
        url=_url("prometheus", url, ("http", "https")),
        match=match,
        table=_path(options, "map"),
        header_env=_header("prometheus", options),
    )


def _remote(text: str) -> PowerChoice:
    from replay.power.serve import is_loopback  # a server comes with it

    url, *parts = _split(text)
    options = _named("a remote meter", parts, ("token-env", "ca-file"))
    url = _url("a remote meter", url, ("http", "https"))
    token_env = options.get("token-env")
    if not is_loopback(urlsplit(url).hostname or ""):
        if url.startswith("http:"):
            raise ValueError(
                f"power {_shown(url)}: a meter on another machine is read over https:// only, "
                "as its token would be in clear"
            )
        if token_env is None:
            raise ValueError(f"power {_shown(url)}: token-env is missing: name the variable that holds its token")
    if token_env is not None and _VARIABLE.fullmatch(token_env) is None:
        raise ValueError(f"power {_shown(url)}: token-env is the name of an environment variable, not its value")
    return PowerChoice(kind="remote", url=url, token_env=token_env, ca_file=_path(options, "ca-file"))


def _command(rest: str) -> PowerChoice:
    try:
        words = tuple(shlex.split(rest[1:])) if rest[:1] == ":" else ()
    except ValueError as error:
        raise ValueError(f"power command: its words cannot be read: {error}") from None
    if not words or not words[0]:
        raise ValueError("power command: name a program and its arguments, as in command:./meter.sh --rack 4")
    if _ASSIGNED.match(words[0]):
        # Not quoted: what is assigned may be a key.
        raise ValueError(
            "power command: no shell reads it, and it begins with an assignment: export the variable, and name the "
            "program first"
        )
    return PowerChoice(kind="command", words=words)


def _file(rest: str) -> PowerChoice:
    path = rest[1:] if rest[:1] == ":" else ""
    if not path:
        raise ValueError("power file: name a file of power readings, as in file:meter.jsonl")
    return PowerChoice(kind="file", path=Path(path))


_READERS: Mapping[str, Callable[[str], PowerChoice]] = {
    "nvml": _nvml,
    "rapl": _rapl,
    "declared": _declared,
    "exporter": _exporter,
    "prometheus": _prometheus,
    "command": _command,
    "file": _file,
}


def _argument(kind: str, rest: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    if rest[:1] != ":":
        raise ValueError(f"power {kind}: its URL is missing, as in {kind}:http://node1:9400/metrics")
    argument, *parts = _split(rest[1:])
    return argument, _named(kind, parts, known)


def _options(kind: str, rest: str, known: tuple[str, ...]) -> dict[str, str]:
    first, *parts = _split(rest)
    if first:
        raise ValueError(f"power {kind} takes no argument after a colon: use {FORMS}")
    return _named(kind, parts, known)


def _named(kind: str, parts: Sequence[str], known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            # Of a URL with a comma in its query or password this may be a part.
            shown = f"option {name!r}" if _OPTION.fullmatch(name) else "an option"
            raise ValueError(f"power {kind}: {shown} is not known: it {takes}")
        if not equals or not value:
            raise ValueError(f"power {kind}: {name} has no value")
        if name in found:
            raise ValueError(f"power {kind}: {name} is given twice")
        found[name] = value
    return found


def _split(text: str) -> list[str]:
    """The parts between commas; one inside braces or double quotes divides nothing."""
    parts = [""]
    depth, quoted, escaped = 0, False, False
    for letter in text:
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
        elif letter == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += letter
    return parts


def _url(kind: str, text: str, schemes: tuple[str, ...]) -> str:
    """A URL without credentials; raises ValueError, which does not quote one that may hold a password."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"power {kind}: its URL cannot be read") from None
    if "@" in parts.netloc:
        raise ValueError(
            f"power {kind}: its URL holds credentials: leave them out and name the variable that holds them instead"
        )
    if parts.scheme not in schemes or not host or not text.isprintable() or " " in text:
        shown = "what it is given" if "@" in text else repr(_shown(text)[:200])  # user:password@host, without a scheme
        raise ValueError(f"power {kind}: {shown} is not a URL that begins with http:// or https://")
    return text


def _shown(url: str) -> str:
    """A URL that may be printed and kept: without its query and fragment."""
    return re.split(r"[?#]", url, maxsplit=1)[0]


def _match(kind: str, options: Mapping[str, str]) -> str | None:
    match = options.get("match")
    if match is not None and not (match.startswith("{") and match.endswith("}")):
        raise ValueError(f'power {kind}: match stands in braces, as in match={{instance="n1:9400"}}')
    return match


def _header(kind: str, options: Mapping[str, str]) -> tuple[str, str] | None:
    text = options.get("header-env")
    if text is None:
        return None
    name, _, variable = text.partition("=")
    if _HEADER.fullmatch(name) is None or _VARIABLE.fullmatch(variable) is None:
        raise ValueError(
            f"power {kind}: header-env reads Header-Name=VARIABLE, and the variable holds the header's value"
        )
    return name, variable


def _path(options: Mapping[str, str], name: str) -> Path | None:
    return Path(options[name]) if name in options else None

"""Which languages a session worked in, by the names of the files that its tool calls touch (never by their text).

File names come from every agent's tools: path arguments (`file_path`, `filePath`, `absolute_path`, `path`, … at any
depth), the heads of patches (`*** Update File: …`, `+++ b/…`) and the words of shell commands; the body of a heredoc
and quoted text with blanks in it are no words of a command. Left out are files that nobody works on: lock files,
minified ones, and all under `node_modules`, `site-packages`, `.git` and their like. `/tmp` counts: agents clone there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from capture.trajectory import Trajectory

SUFFIXES = {
    "ada": "adb ads",
    "assembly": "asm s",
    "astro": "astro",
    "awk": "awk",
    "batch": "bat cmd",
    "c": "c",
    "c#": "cs csx",
    "c++": "c++ cc cpp cxx h++ hh hpp hxx inl ipp tcc tpp",
    "clojure": "clj cljc cljs edn",
    "cmake": "cmake",
    "cobol": "cbl cob",
    "coffeescript": "coffee",
    "common lisp": "lisp lsp",
    "crystal": "cr",
    "css": "css",
    "csv": "csv tsv",
    "cuda": "cu cuh",
    "cython": "pxd pyx",
    "d": "d",
    "dart": "dart",
    "elixir": "eex ex exs heex",
    "elm": "elm",
    "emacs lisp": "el",
    "erlang": "erl hrl",
    "f#": "fs fsi fsx",
    "fish": "fish",
    "fortran": "f f03 f08 f77 f90 f95 for",
    "gleam": "gleam",
    "glsl": "comp frag glsl vert",
    "go": "go",
    "gradle": "gradle",
    "graphql": "gql graphql",
    "groovy": "groovy",
    "handlebars": "handlebars hbs",
    "haskell": "hs lhs",
    "hlsl": "hlsl",
    "html": "htm html xhtml",
    "idris": "idr",
    "ini": "cfg conf ini properties",
    "java": "java",
    "javascript": "cjs es6 js jsx mjs",
    "jinja": "j2 jinja jinja2",
    "json": "json json5 jsonc jsonl ndjson",
    "julia": "jl",
    "jupyter": "ipynb",
    "kotlin": "kt kts",
    "lean": "lean",
    "less": "less",
    "lua": "lua luau",
    "make": "mak mk",
    "markdown": "markdown md mdx",
    "metal": "metal",
    "mojo": "mojo",
    "nim": "nim nims",
    "nix": "nix",
    "objective-c": "m mm",
    "ocaml": "ml mli",
    "odin": "odin",
    "pascal": "dpr pas pp",
    "perl": "perl pl pm",
    "php": "php phtml",
    "powershell": "ps1 psd1 psm1",
    "prisma": "prisma",
    "protobuf": "proto",
    "python": "py pyi pyw",
    "r": "r rmd",
    "racket": "rkt",
    "restructuredtext": "rst",
    "ruby": "erb gemspec rake rb ru",
    "rust": "rs",
    "sass": "sass scss",
    "scala": "sbt sc scala",
    "scheme": "scm ss",
    "shell": "bash bats ksh sh zsh",
    "solidity": "sol",
    "sql": "ddl sql",
    "svelte": "svelte",
    "swift": "swift",
    "systemverilog": "sv svh",
    "tcl": "tcl",
    "terraform": "hcl tf tfvars",
    "tex": "bib latex sty tex",
    "text": "txt",
    "thrift": "thrift",
    "toml": "toml",
    "typescript": "cts mts ts tsx",
    "verilog": "v vh",
    "vhdl": "vhd vhdl",
    "vim script": "vim",
    "vue": "vue",
    "webassembly": "wat",
    "wgsl": "wgsl",
    "xml": "csproj fsproj plist svg vbproj xml xsd xsl xslt",
    "yaml": "yaml yml",
    "zig": "zig zon",
}
NAMES = {
    "bazel": "BUILD BUILD.bazel MODULE.bazel WORKSPACE",
    "cmake": "CMakeLists.txt",
    "dockerfile": "Containerfile Dockerfile",
    "groovy": "Jenkinsfile",
    "just": "Justfile justfile",
    "make": "GNUmakefile Makefile makefile",
    "python": "SConscript SConstruct",
    "ruby": "Brewfile Gemfile Podfile Rakefile Vagrantfile",
    "shell": ".bash_profile .bashrc .profile .zshrc PKGBUILD",
    "starlark": "Tiltfile",
}
HEADER = "h"  # of C, C++ or Objective-C: the session's other files say which
LANGUAGES = frozenset((*SUFFIXES, *NAMES))

_OF_SUFFIX = {suffix: language for language, suffixes in SUFFIXES.items() for suffix in suffixes.split()} | {
    "bzl": "starlark",
    "dockerfile": "dockerfile",
    HEADER: HEADER,
}
_OF_NAME = {name: language for language, names in NAMES.items() for name in names.split()}

_LOCKS = frozenset({"package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml", "packages.lock.json"})
_FOREIGN = frozenset(
    {".git", ".tox", ".venv", "__pycache__", "bower_components", "dist-packages", "node_modules", "site-packages"}
)
_SYSTEM = ("/dev/", "/proc/", "/sys/", "/usr/lib/", "/usr/include/")

_PATHS = (
    "absolutepath destinationpath file filename filepath filepaths files newpath notebookpath oldpath",
    "path paths relativepath sourcepath targetfile targetfiles",
)
_PATH_KEYS = frozenset(key for keys in _PATHS for key in keys.split())
_COMMAND_KEYS = frozenset({"cmd", "command", "commands", "script", "commandline"})
_PATCH_KEYS = frozenset({"input", "patch", "diff", "patchtext"})
_DEPTH = 4  # a batch of calls in the arguments of one

_PATCHED = re.compile(
    r"^(?:\*\*\* (?:Update File|Add File|Delete File|Move to): |(?:\+\+\+|---) [ab]/)([^\r\n]+)", re.MULTILINE
)
_HEREDOC = re.compile(
    r"(?<!<)<<-?[ \t]*([\"']?)([A-Za-z_]\w*)\1([^\n]*)\n.*?(?:^[ \t]*\2[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
# A quote without its end takes the rest, so that no input is gone over twice.
_WORD = re.compile(r"""(?<!\S)#[^\n]*|"(?:[^"\\]|\\[\s\S])*+(?:"|\\?\Z)|'[^']*+(?:'|\Z)|[^\s;|&<>()"'`]+""")
_PLACE = re.compile(r"(?:::.*|:\d+(?:[:-]\d+)*|#L\d+.*)$")
_SHELLS = re.compile(r"(?:^|/)(?:ba|da|z|k)?sh$")
_RUNS = re.compile(r"-[a-z]*c$")


def language_mix(trajectory: Trajectory) -> list[tuple[str, float]] | None:
    """Languages by share of what tool calls touch (a call counts once for each language), largest first.

    None where no tool call names a file of a known language: without text nobody can tell.
    """
    found: Counter[str] = Counter()
    for pooled in trajectory.pool:
        for use in pooled.message.tool_calls:
            found.update({language for path in paths_of(use.arguments) if (language := language_of(path))})
    if headers := found.pop(HEADER, 0):
        of = [name for name in ("c++", "cuda", "objective-c", "c") if found[name]] or ["c"]
        found["c++" if of[0] == "cuda" else of[0]] += headers
    total = found.total()
    return [
        (language, n / total) for language, n in sorted(found.items(), key=lambda item: (-item[1], item[0])) if n
    ] or None


def language_of(path: str) -> str | None:
    """The language of a file by its name alone (`HEADER` for a C header); None for one that is unknown or left out."""
    path = path.replace("\\", "/")
    *folders, name = path.split("/")
    if not _FOREIGN.isdisjoint(folders) or path.startswith(_SYSTEM) or name in _LOCKS:
        return None
    if name in _OF_NAME:
        return _OF_NAME[name]
    stem, dot, suffix = name.rpartition(".")
    if name.startswith("Dockerfile."):
        return "dockerfile"
    if not dot or not stem or stem.endswith(".min"):
        return None
    return _OF_SUFFIX.get(suffix.lower())


def paths_of(arguments: str) -> Iterator[str]:
    """What may be file names in a tool call's arguments: JSON, or the free text of a custom tool."""
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict | list):
        yield from _in_values(values, _DEPTH)
    else:
        yield from _in_command(values if isinstance(values, str) else arguments)


def _in_values(values: Any, depth: int) -> Iterator[str]:
    if isinstance(values, list):
        for value in values if depth else ():
            yield from _in_values(value, depth - 1)
        return
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        kind = key.replace("_", "").lower()
        texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        strings = [text for text in texts if isinstance(text, str)]
        if kind in _PATH_KEYS:
            yield from strings
        elif kind in _COMMAND_KEYS:
            yield from _in_arguments(strings) if isinstance(value, list) else _in_command(value)
        elif kind in _PATCH_KEYS:
            for text in strings:
                yield from _patched(text)
        if depth and not strings:
            yield from _in_values(value, depth - 1)


def _patched(text: str) -> Iterator[str]:
    yield from (path.rstrip() for path in _PATCHED.findall(text))


def _in_arguments(words: list[str]) -> Iterator[str]:
    """An argument vector: `["bash", "-lc", "sed -n 1,9p a.rs"]`, or a list of command lines."""
    for before, word in zip(["", *words], words, strict=False):
        if _RUNS.match(before) or " " in word:
            yield from _in_command(word)
        elif not word.startswith("-"):
            yield word


def _in_command(command: Any, depth: int = 2) -> Iterator[str]:
    if not isinstance(command, str):
        return
    yield from _patched(command)
    if command.lstrip().startswith("*** Begin Patch"):
        return
    before = last = ""
    for found in _WORD.finditer(_HEREDOC.sub(r"\3\n", command)):
        word = found[0]
        if word[0] == "#":
            continue
        quoted = word[0] in "\"'"
        word = word.strip(word[0]) if quoted else word
        if quoted and depth and _RUNS.match(last) and _SHELLS.search(before):
            yield from _in_command(word, depth - 1)
        elif not (any(blank in word for blank in " \t\n") or word.startswith("-") or "://" in word):
            name = _PLACE.sub("", word.rpartition("=")[2])
            if "@" not in name.partition("/")[0] or name.startswith("@"):
                yield name
        before, last = last, word

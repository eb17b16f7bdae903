"""Which languages a session worked in, read from the file names in its tool calls (never from the text)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import PurePosixPath

from capture.trajectory import Trajectory

PATH_ARGUMENTS = ("file_path", "path", "filePath", "filename", "notebook_path", "target_file", "absolute_path")
LANGUAGE_OF_SUFFIX = {
    ".bash": "shell",
    ".c": "c",
    ".cc": "c++",
    ".cfg": "ini",
    ".cpp": "c++",
    ".cs": "c#",
    ".css": "css",
    ".cu": "cuda",
    ".cuh": "cuda",
    ".dart": "dart",
    ".ex": "elixir",
    ".exs": "elixir",
    ".go": "go",
    ".h": "c",
    ".hpp": "c++",
    ".hs": "haskell",
    ".html": "html",
    ".ini": "ini",
    ".ipynb": "jupyter",
    ".java": "java",
    ".jl": "julia",
    ".js": "javascript",
    ".json": "json",
    ".jsx": "javascript",
    ".kt": "kotlin",
    ".lua": "lua",
    ".md": "markdown",
    ".mjs": "javascript",
    ".ml": "ocaml",
    ".php": "php",
    ".pl": "perl",
    ".proto": "protobuf",
    ".py": "python",
    ".pyi": "python",
    ".r": "r",
    ".rb": "ruby",
    ".rs": "rust",
    ".rst": "restructuredtext",
    ".scala": "scala",
    ".sh": "shell",
    ".sql": "sql",
    ".svelte": "svelte",
    ".swift": "swift",
    ".tex": "tex",
    ".tf": "terraform",
    ".toml": "toml",
    ".ts": "typescript",
    ".tsx": "typescript",
    ".txt": "text",
    ".vue": "vue",
    ".xml": "xml",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".zig": "zig",
}
LANGUAGE_OF_NAME = {"Dockerfile": "dockerfile", "Makefile": "make", "CMakeLists.txt": "cmake"}


def language_mix(trajectory: Trajectory) -> list[tuple[str, float]] | None:
    """Languages by share of the tool calls that name a file of a known one, largest first; None if none does."""
    found: Counter[str] = Counter()
    for pooled in trajectory.pool:
        for use in pooled.message.tool_calls:
            language = _language(use.arguments)
            if language is not None:
                found[language] += 1
    total = found.total()
    return [
        (language, n / total) for language, n in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ] or None


def _language(arguments: str) -> str | None:
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    for key in PATH_ARGUMENTS:
        value = values.get(key)
        if isinstance(value, str):
            path = PurePosixPath(value.replace("\\", "/"))
            return LANGUAGE_OF_NAME.get(path.name) or LANGUAGE_OF_SUFFIX.get(path.suffix.lower())
    return None

"""What one writes first: `datasets.map` over JSON lines of sessions, a list of patterns, tiktoken per request.

Each session's texts are searched for the patterns, the tokens of each request's whole prompt are counted, and the rows
go to Parquet. Run by `bench/curate.py --build`.

    python bench/naive_pipeline.py SESSIONS.jsonl OUT PROCESSES
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

PATTERNS = re.compile(
    "|".join(
        (
            r"AKIA[0-9A-Z]{16}",
            r"gh[pousr]_[0-9A-Za-z]{36,}",
            r"github_pat_[0-9A-Za-z_]{60,}",
            r"sk-(?:ant-|proj-)?[0-9A-Za-z_-]{20,}",
            r"xox[abprs]-[0-9A-Za-z-]{10,}",
            r"glpat-[0-9A-Za-z_-]{20}",
            r"AIza[0-9A-Za-z_-]{35}",
            r"hf_[0-9A-Za-z]{30,}",
            r"eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}",
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]+?-----END [A-Z ]*PRIVATE KEY-----",
            r"(?i:password|secret|token|api_key)\s*[=:]\s*['\"][^'\"\s]{8,}['\"]",
            r"[0-9A-Za-z._%+-]+@[0-9A-Za-z.-]+\.[A-Za-z]{2,}",
            r"/(?:home|Users)/[0-9A-Za-z._-]+",
        )
    )
)


def clean(messages: list[dict[str, Any]]) -> None:
    for message in messages:
        message["content"] = PATTERNS.sub("[REDACTED]", message["content"])
        for call in message["tool_calls"]:
            call["arguments"] = PATTERNS.sub("[REDACTED]", call["arguments"])


def prompt(messages: list[dict[str, Any]]) -> str:
    return "\n".join(
        "\n".join((message["role"], message["content"], *(call["arguments"] for call in message["tool_calls"])))
        for message in messages
    )


class Work:
    """The function of `map`; the encoding is loaded once per process."""

    def __init__(self) -> None:
        self.encoding: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"encoding": None}

    def __call__(self, session: dict[str, Any]) -> dict[str, Any]:
        if self.encoding is None:
            from curate.tokens import load_encoding

            self.encoding = load_encoding("o200k_base")
        for chain in (session, *session["agents"]):
            clean(chain["messages"])
            for request in chain["requests"]:
                text = prompt(chain["messages"][: request["message_count"]])
                request["prompt_tokens"] = len(self.encoding.encode_ordinary(text))
        return session


def main() -> None:
    source, out, processes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    import datasets

    datasets.disable_progress_bars()
    sessions = datasets.load_dataset("json", data_files=source, split="train", cache_dir=str(out / "cache"))
    sessions = sessions.map(Work(), num_proc=processes)
    sessions.to_parquet(out / "sessions.parquet")
    print(json.dumps({"sessions": len(sessions), "bytes": (out / "sessions.parquet").stat().st_size}))


if __name__ == "__main__":
    main()

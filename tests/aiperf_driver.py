"""Runs in AIPerf's own environment: its loaders over exported files, without a server. Prints what they made of each.

python aiperf_driver.py PATH …    (a folder: Weka traces; a file: Mooncake rows)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    from aiperf.common import random_generator
    from aiperf.common.tokenizer import Tokenizer
    from aiperf.dataset.generator.prompt import PromptGenerator
    from aiperf.dataset.loader.mooncake_trace import MooncakeTraceDatasetLoader
    from aiperf.dataset.loader.weka_trace import WekaTraceLoader

    random_generator.init(1)
    tokenizer = Tokenizer.from_pretrained("builtin")
    for name in sys.argv[1:]:
        path = Path(name)
        loader_type: Any = WekaTraceLoader if path.is_dir() else MooncakeTraceDatasetLoader
        first = None if path.is_dir() else json.loads(path.read_bytes().split(b"\n")[0])
        generator = PromptGenerator(prompts=None, prefix_prompts=None, tokenizer=tokenizer)
        loader = loader_type(filename=str(path), prompt_generator=generator)
        loaded = loader.load_dataset()
        conversations = loader.convert_to_conversations(loaded)
        told = {
            "takes": bool(loader_type.can_load(first, str(path))),
            "loaded": sum(len(traces) for traces in loaded.values()),
            "conversations": len(conversations),
            "turns": sum(len(conversation.turns) for conversation in conversations),
            "raw": sum(turn.raw_messages is not None for one in conversations for turn in one.turns),
            "delays": sum(turn.delay is not None for one in conversations for turn in one.turns),
        }
        print("told:" + json.dumps(told), flush=True)


if __name__ == "__main__":
    main()

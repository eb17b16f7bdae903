"""The process that is the engine: llama.cpp's HTTP server until it is told to stop or its parent is gone.

Started by `replay.engine.llama` as `python -m replay.engine.child OPTIONS`. It prints one JSON line with its address
once it serves. It ends on SIGTERM and SIGINT, and when standard input closes: the parent holds the other end of that
pipe, so the kernel ends us even after a SIGKILL of the parent.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.engine.llama import EngineOptions


def serve(options: EngineOptions) -> None:
    """Serve until told to stop; never returns."""
    os.nice(options.niceness)
    xllamacpp: Any = importlib.import_module("xllamacpp")  # a compiled module: nothing in it has a type
    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.gguf_path
    parameters.model_alias = {options.model}
    parameters.hostnames = [options.host]
    parameters.port = options.port
    parameters.n_parallel = options.slots
    parameters.n_ctx = options.slots * options.slot_context
    # Each slot has its own KV cells. In a unified cache every token attends over all streams' cells, and N streams
    # cost N times as much on a CPU.
    parameters.kv_unified = False
    parameters.cont_batching = True
    parameters.cache_prompt = True
    # Off: the copy in main memory would keep prefixes that the slots had to give up, and hide the thrashing that a
    # capacity search is after.
    parameters.cache_ram_mib = options.cache_ram_mib
    parameters.cpuparams.n_threads = options.threads
    parameters.cpuparams_batch.n_threads = options.threads
    # One thread per waiting connection: a request that queues for a slot holds its thread until it is served.
    parameters.n_threads_http = options.connections
    parameters.n_gpu_layers = 0
    parameters.fit_params = False  # our sizes are meant; adjusting them to free memory would change what is measured
    parameters.use_jinja = True
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = True
    parameters.ui = False
    parameters.offline = True
    server = xllamacpp.Server(parameters)
    sys.stdout.write(json.dumps({"url": server.listening_address}) + "\n")
    sys.stdout.flush()

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def watch_parent() -> None:
        sys.stdin.buffer.read()
        stop.set()

    threading.Thread(target=watch_parent, daemon=True).start()
    # A plain wait() would hold signals back until it returns.
    while not stop.wait(0.2):
        pass
    # The server's destructor waits for streams in flight; whoever stops us wants the port back now.
    os._exit(0)


def main() -> None:
    from replay.engine.llama import EngineOptions

    serve(EngineOptions.from_json(sys.argv[1]))


if __name__ == "__main__":
    main()

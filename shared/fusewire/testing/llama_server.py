"""A real llama.cpp server on a GGUF file, for tests and benchmarks.

It runs in a process of its own, from the wheel `xllamacpp`.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRAM = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel = int(sys.argv[2]), int(sys.argv[4])
params.port, params.use_jinja = 0, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
_END_S = 60


@contextmanager
def llama_server(
    file: Path, *, context: int = 1024, threads: int = 1, slots: int = 1
) -> Iterator[str]:
    """A server, by its address, such as `http://127.0.0.1:40123`.

    It ends with the block, and with this process. Its slots share the positions of `context`.
    """
    numbers = [str(number) for number in (context, threads, slots)]
    command = [sys.executable, "-c", _PROGRAM, str(file), *numbers]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()
            server.wait(_END_S)

"""Run a script with `torch.compile` up to, and without, the generation of code: `python THIS SCRIPT ARGUMENTS`.

Dynamo's graphs, their cutting into DDP's buckets and autograd's part are as ever; C++ for a CPU would take minutes. At
the end each process prints `torch.compile`'s counters.
"""

import atexit
import functools
import json
import runpy
import sys

from torch import nn
from torch._dynamo.utils import counters

COMPILE = functools.partialmethod(nn.Module.compile, backend="aot_eager")
"""To take the place of `nn.Module.compile`."""


def _report() -> None:
    sys.stdout.write(f"counters {json.dumps({kind: dict(counts) for kind, counts in counters.items()})}\n")


if __name__ == "__main__":
    nn.Module.compile = COMPILE  # type: ignore[method-assign, assignment]
    atexit.register(_report)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")

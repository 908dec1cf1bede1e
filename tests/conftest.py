"""One thread per test process: the networks are tiny, and workers that share cores only disturb each other with more. Freed memory stays, as in `fewstep`."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

import torch

torch.set_num_threads(1)

from fewstep.memory import keep_freed

keep_freed()

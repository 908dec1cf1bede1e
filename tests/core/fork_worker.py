"""Reads lines of arguments of `fewstep` (a folder to run in before them, separated by NUL), runs each in a fork and prints its process id."""

import os
import signal
import sys

import torch

from fewstep.cli import main
from fewstep.train import fit  # noqa: F401  (imported once, for all forks)

torch.set_num_threads(1)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks are not waited for
for line in sys.stdin:
    folder, *args = line.rstrip("\n").split("\0")
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        main(args)
    print(process, flush=True)

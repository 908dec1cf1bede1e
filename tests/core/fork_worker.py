"""Trains a recipe several times, each in a fork of one process that has made its objects and never trained. Lines of words between NULs:

make FOLDER RECIPE OPTIONS...   the objects of a recipe, made in FOLDER      -> made
fit FOLDER [CHECKPOINT]         a fork trains in FOLDER, perhaps resuming    -> its process id
wait ID                                                                      -> its exit code
end
"""

import os
import sys
from pathlib import Path

import lightning as L
import torch

from fewstep.train.fit import instantiate


class Batches(L.Callback):
    """Counts those that are trained on."""

    count = 0

    def on_train_batch_end(self, *args):
        self.count += 1


def serve(folder, recipe, *options):
    """Obey the lines that follow, up to `end`."""
    os.chdir(folder)
    cli = instantiate(Path(recipe), options)
    batches = Batches()
    cli.trainer.callbacks.append(batches)
    print("made", flush=True)
    for line in sys.stdin:
        word, *given = line.rstrip("\n").split("\0")
        if word == "end":
            return
        if word == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(int(given[0]), 0)[1]), flush=True)
            continue
        process = os.fork()
        if process == 0:
            folder, *checkpoint = given
            os.makedirs(folder, exist_ok=True)
            os.chdir(folder)
            cli.trainer.fit(
                cli.model, cli.datamodule, ckpt_path=checkpoint[0] if checkpoint else None, weights_only=True
            )
            os._exit(batches.count)
        print(process, flush=True)


torch.set_num_threads(1)
for line in sys.stdin:
    word, *given = line.rstrip("\n").split("\0")
    if word != "make":
        continue
    process = os.fork()
    if process == 0:
        serve(*given)
        os._exit(0)
    os.waitpid(process, 0)

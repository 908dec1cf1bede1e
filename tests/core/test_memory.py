"""What a step frees is there for the next one: the kernel's count of page faults says so."""

import os
import subprocess
import sys

import pytest

COUNTED = """
import resource, sys
import torch
from fewstep.memory import keep_freed
from fewstep.nets.unet import UNet

torch.set_num_threads(1)
agreed = keep_freed() if sys.argv[1] == "kept" else None
net, x, t = UNet(2, 16, (1, 1), blocks=1, attention=()), torch.randn(8, 2, 96, 96), torch.rand(8)

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        net(x, t).square().mean().backward()
        net.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(4)
print(agreed, *(faults(8) for _ in range(3)))
"""


def counted(way, **environment):
    """Whether the allocator agreed, and the page faults of eight steps: the least of three counts, for a heap may still grow a little once."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    run = [sys.executable, "-c", COUNTED, way]
    out = subprocess.run(run, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout.split()
    return out[0], min(map(int, out[1:]))


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt(3)")
def test_a_second_step_touches_no_new_pages():
    _, before = counted("as it is")
    agreed, after = counted("kept")
    assert agreed == "True"
    assert after < 0.05 * before


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt(3)")
def test_the_environment_has_the_last_word():
    assert counted("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"

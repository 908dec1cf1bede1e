"""Real against real: the value that a figure has where nothing is wrong."""

from fewstep_video.metrics.laws import law_figures
from fewstep_video.metrics.truth import truth_figures
from fewstep_video.worlds import World


def world_floor(world: World, real: int = 1024, fake: int = 512, seed: int = 0) -> dict[str, float]:
    """Laws of `fake` clips of a world against `real` others, and the means of what its truth reads off them."""
    first, second = world.balanced(real, 1000 + 2 * seed), world.balanced(fake, 1001 + 2 * seed)
    truth = truth_figures(world, second.video, second.label)
    return law_figures(first.video, second.video) | {k: v.double().mean().item() for k, v in truth.items()}

"""The bench of score forgetting: what it counts, of generators that are known."""

import torch
import yaml

from fewstep import recipes
from fewstep.bench.distill_worlds import Ring
from fewstep.bench.forgetting import RECIPE, TEACHER, confusion


class Asked:
    """Samples of the mode that was asked for but for one class, of which half are another's and half nobody's."""

    def __init__(self, world, gone, instead):
        self.means, self.gone, self.instead = world.mixture.means, gone, instead

    def generate(self, noise, cond):
        label = cond["label"]
        where = torch.where(label == self.gone, self.instead, label)
        x = self.means[where] + 0.05 * noise.double()
        away = (label == self.gone) & (torch.arange(len(label)) % 16 >= 8)
        return torch.where(away[:, None], 0 * x, x)


def test_samples_belong_to_the_mode_that_they_are_near():
    found = confusion(Asked(Ring(), 2, 6), Ring(), 0)
    wanted = torch.eye(8, dtype=torch.float64)
    wanted[2] = 0
    wanted[2, 6] = 0.5
    torch.testing.assert_close(found, wanted)


def test_the_recipe_names_a_class_and_its_override():
    text = recipes.find(f"toy/{RECIPE}").read_text()
    args = yaml.safe_load(text)["model"]["init_args"]
    assert args["forget"] != args["override"]
    assert f"runs/{TEACHER}/last" in text

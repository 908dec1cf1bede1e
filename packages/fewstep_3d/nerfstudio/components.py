"""nerfstudio's own components at the work of `bench/renderer.py`: what a plugin without a tabulated field is made of.

TriplaneEncoding (sum of three planes) -> two MLPs, density and colour -> UniformSampler -> RGBRenderer. The colour MLP reads the sum (32 numbers),
that of this package the concatenation (96): a little less work here.
"""
# pyright: reportMissingImports=false

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.encodings import TriplaneEncoding
from nerfstudio.field_components.mlp import MLP
from nerfstudio.model_components.ray_samplers import UniformSampler
from nerfstudio.model_components.renderers import RGBRenderer
from torch import Tensor, nn
from torch.nn.functional import softplus

from fewstep_3d.cameras import Cameras
from fewstep_3d.renderer import flat
from fewstep_3d.samplers import cube


class Components(nn.Module):
    """A density field of planes (3, channels, resolution, resolution).

    Args:
        width, layers: of both perceptrons; layers counts the hidden ones.
        samples: per ray.
    """

    def __init__(self, width: int, layers: int, samples: int, resolution: int, channels: int = 32) -> None:
        super().__init__()
        self.planes = TriplaneEncoding(resolution, channels)
        sizes = {"in_dim": channels, "num_layers": layers + 1, "layer_width": width, "implementation": "torch"}
        self.density, self.colour = MLP(out_dim=1, **sizes), MLP(out_dim=3, out_activation=nn.Sigmoid(), **sizes)
        self.sampler, self.renderer = UniformSampler(num_samples=samples), RGBRenderer(background_color="white")

    def picture(self, cameras: Cameras) -> Tensor:
        """(1, V, H, W, 3), trained through."""
        rays = flat(cameras.rays(), 1)
        near, far = cube(rays)
        bundle = RayBundle(
            rays.origins[0],
            rays.directions[0],
            pixel_area=torch.ones_like(near[0, :, None]),
            nears=near[0, :, None],
            fars=far[0, :, None],
        )
        samples = self.sampler(bundle)
        features = self.planes(samples.frustums.get_positions())
        weights = samples.get_weights(softplus(self.density(features)))
        return self.renderer(self.colour(features), weights).view(1, len(cameras), *cameras.size, 3)

"""3-D: triplane fields, a differentiable renderer in plain torch, meshes, and generators distilled from multi-view image models."""

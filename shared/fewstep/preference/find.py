"""FIND: policy optimisation of the first noise's law; the generator stays as it is (arXiv:2407.19453).

    z ~ N(mu, sigma^2),   x0 = G(z),   A = r(x0) - b
    L = -min( rho A, clip(rho, 1 - c, 1 + c) A ) + kl KL(N(mu, sigma^2) || N(0, I)),   rho = p_theta(z)/p_old(z)
    L_b = (r - b)^2            b learns the mean reward of what is replayed

Sampling is one step of a decision process whose action is z, so no gradient of network or reward is asked for. Samples of
earlier policies are replayed, with the likelihood that they had. The paper optimises one law per prompt, so b is a number. `kl` is not in the
paper, which bounds the law by the clip alone; the sizes of batch and replay are not published as code.
"""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fewstep.generator import Generator
from fewstep.nets.adapter import trainable
from fewstep.nets.noise_policy import NoisePolicy
from fewstep.preference.aligner import Aligner
from fewstep.preference.clipped import clipped_loss
from fewstep.preference.experience import Experience
from fewstep.preference.rewards import Reward
from fewstep.train.shell import Batch, Terms, scheduled


class Baseline(nn.Module):
    """The mean reward, learned."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


class FIND(Aligner):
    """The remaining arguments are those of `Aligner`.

    Args:
        shape: of one noise.
        clip: of the ratios; kl: factor of the divergence from N(0, I), none unless given.
        replay: samples kept, the newest ones; each update takes a batch of them.
        baseline_optimizer: of b; the policy's unless given.
    """

    keeps = True

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        reward: Reward,
        shape: tuple[int, ...],
        clip: float = 0.2,
        kl: float = 0.0,
        replay: int = 2048,
        baseline_optimizer: OptimizerCallable | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, reward, **kwargs)
        self.clip, self.kl, self.replay = clip, kl, replay
        self.student.denoiser.net = NoisePolicy(self.student.denoiser.net, tuple(shape))
        trainable(self.student.train())
        self.baseline, self.baseline_optimizer = Baseline(), baseline_optimizer or self.optimizer
        self.held = Experience()

    @property
    def policy(self) -> NoisePolicy:
        """mu and sigma."""
        return self.student.denoiser.net  # pyright: ignore[reportReturnType]

    def trained(self) -> dict[str, nn.Module]:
        return super().trained() | {"baseline": self.baseline}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The policy's and the baseline's."""
        kinds = {"student": self.optimizer, "baseline": self.baseline_optimizer}
        return [
            scheduled(kinds[name]([p for p in network.parameters() if p.requires_grad]))
            for name, network in self.trained().items()
        ]

    def loss(self, batch: Batch) -> Terms:
        """The clipped surrogate on replayed actions, the divergence, and the error of the baseline."""
        self.held.add(self.drawn(batch), self.replay)
        chosen = torch.randperm(len(self.held), device=self.device)[: len(next(iter(batch.values())))]
        rows = self.held.rows(chosen)
        advantage = rows["reward"] - self.baseline.value.detach()
        ratio = self.policy.log_probability(rows["z"]) - rows["log_p"]
        terms = {"policy": clipped_loss(ratio, advantage, self.clip).mean()}
        terms["baseline"] = (rows["reward"] - self.baseline.value).square().mean()
        if self.kl:
            terms["kl"] = self.kl * self.policy.divergence()
        self.values["train/reward"] = rows["reward"].mean()
        return terms

    @torch.no_grad()
    def drawn(self, batch: Batch) -> dict[str, Tensor]:
        """Actions z of the present policy, their likelihood and reward."""
        x0, cond, y = self.student.prepare(batch)
        noise = torch.randn_like(x0)
        z, worth = self.policy.first_noise(noise), self.reward(self.student.generate(noise, cond, y), cond)
        return {"z": z, "log_p": self.policy.log_probability(z), "reward": worth}

"""MCM: consistency of the motion, and a critic of single frames for the looks (Motion Consistency Model, arXiv:2406.06890).

    x_t, x_s   two states of one trajectory of the guided teacher, from a clip of the data or (with probability `mixed`) the student's own
               one-step clip; at the noisy end pure noise
    L          d( M(f(x_t, t)), sg M'(f(x_s, s)) ) + weight loss.student(C(frames of f(x_t, t)))
    critic     loss.critic(C(pictures), C(frames))

M is a representation of motion (motion.py), trained by the same loss where it has weights, with an average M' for targets; it is dropped when the
student samples. Pictures are batches' `image`, a set with the looks that are wanted, or frames of the data's clips without one.

Official defaults: 50 nodes, one DDIM step, guidance in [6, 16] (its w in [5, 15] with w = 0 the conditional branch alone) that is not told, adapters of
rank 64 (`fewstep.lora.adapted`), 2 frames a clip, weight 1, `Learned`; DINOv2 as the critic's network with Wasserstein losses and a penalty. Where its
c_skip, c_out are 0 and 1 but at the clean end, f is the x0 here.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoise
from fewstep.discriminators import Adversary
from fewstep.discriminators.discriminator import Discriminator, features
from fewstep.distances import Distance, ElementwiseHuber
from fewstep.distill.alternating import Drawn
from fewstep.distill.consistency import ConsistencyDistillation
from fewstep.distill.consistency_gan import compared
from fewstep.distill.intervals import Adjacent, Intervals
from fewstep.distill.judged import Judged
from fewstep.distill.rollout import Reached
from fewstep.distill.target import Target
from fewstep.distill.teacher_step import TeacherStep
from fewstep.generator import Generator
from fewstep.paths import expand
from fewstep.solvers import DDIM
from fewstep.train.shell import Batch, Terms, scheduled
from fewstep_video.distill.frames import DiffAugment, sampled
from fewstep_video.distill.motion import Motion, Raw
from fewstep_video.video_generator import VideoGenerator


class MCM(Judged, ConsistencyDistillation):
    """The remaining arguments are those of `ConsistencyDistillation` and of `Judged`, whose rollout is not used.

    Args:
        teacher: of clips.
        adversary: heads on layers of `network`.
        network: pictures, or frames (B, C, n, H, W) as so many, -> anything, frozen, such as `FrameEncoder`.
        motion: M; motion_decay: of its average.
        frames: of each clip that the critic sees.
        augment: of what it sees; none unless given.
        mixed: share of the iterations that begin at the student's own clips.
        mu: of the student's average in targets; 0, the student itself, where adapters are trained.
    Raises:
        ValueError: a share outside of [0, 1], a loss that compares pictures with frames in pairs.
    """

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        adversary: Adversary,
        network: nn.Module,
        motion: Motion | None = None,
        motion_decay: float = 0.95,
        frames: int = 2,
        augment: DiffAugment | None = None,
        mixed: float = 0.5,
        mu: float = 0.0,
        intervals: Intervals = Adjacent(50),
        step: TeacherStep = TeacherStep(DDIM()),
        distance: Distance = ElementwiseHuber(1e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            teacher,
            iterations,
            adversary=adversary,
            network=network,
            mu=mu,
            intervals=intervals,
            step=step,
            distance=distance,
            **kwargs,
        )
        if not 0 <= mixed <= 1:
            raise ValueError(f"mixed is a share in [0, 1], not {mixed}")
        if adversary.loss.pairs:
            raise ValueError(f"pictures and frames are no pairs, which {type(adversary.loss).__name__} compares")
        self.motion = motion or Raw()
        self.motion_target = Target(self.motion, motion_decay if any(True for _ in self.motion.parameters()) else 0.0)
        self.frames, self.augment, self.mixed = frames, augment, mixed

    @torch.no_grad()
    def build(self, teacher: Generator) -> Discriminator:
        """Heads for frames of the clips, which are pixels where states are latents."""
        x0, cond, _ = teacher.example()
        video = teacher.decoded(x0) if isinstance(teacher, VideoGenerator) else x0
        layers, t = self.adversary.layers, torch.zeros(len(x0), device=x0.device)
        found = features(self.backbone, layers, video[:, :, :1], t, cond)
        return Discriminator(layers, [self.adversary.head.build(f) for f in found])

    # --- the motion's own optimiser -------------------------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether the representation has weights."""
        return any(True for _ in self.motion.parameters())

    def trained(self) -> dict[str, nn.Module]:
        return super().trained() | ({"motion": self.motion} if self.learns else {})

    def turn(self, name: str) -> bool:
        return super().turn("student" if name == "motion" else name)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The representation's is as the student's."""
        own = [scheduled(self.optimizer(self.motion.parameters()))] if self.learns else []
        return super().configure_optimizers() + own

    def after_step(self) -> None:
        super().after_step()
        self.motion_target.update()

    # --- the loss -------------------------------------------------------------------------------------------------

    def reach(self, drawn: Drawn, cond: Cond) -> Reached:
        """Both ends, from the data's clips or the student's own."""
        if self.mixed and float(torch.rand(())) < self.mixed:
            drawn = drawn._replace(x0=self.own_clips(drawn, cond))
        return compared(self, drawn, cond)

    @torch.no_grad()
    def own_clips(self, drawn: Drawn, cond: Cond) -> Tensor:
        """One evaluation from pure noise."""
        t = torch.full(
            (len(drawn.noise),), self.student.denoiser.path.t_max, dtype=torch.float64, device=drawn.noise.device
        )
        return self.student.denoiser(self.student.begin(drawn.noise, drawn.y), t, cond, drawn.y).x0

    def state(self, teacher: Denoise, x0: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Noised clips; what sampling begins with at the noisy end, so that a path that keeps some of the clip there shows none."""
        path, eps = self.student.denoiser.path, torch.randn_like(x0)
        return torch.where(expand(t >= path.t_max, x0).bool(), path.start(eps, y), path.sample(x0, eps, t, y))

    def motion_loss(self, own: Tensor, wanted: Tensor) -> Tensor:
        """d(M(own), sg M'(wanted)), (B,)."""
        with torch.no_grad():
            aim = self.motion_target.net(wanted)
        return self.distance(self.motion(own), aim)

    def seen(self, x0: Tensor) -> Tensor:
        """Frames (B, C, n, H, W) of states as the critic sees them."""
        codec = self.student.codec if isinstance(self.student, VideoGenerator) else None
        return self.shown(sampled(x0 if codec is None else codec.decode(x0), self.frames))

    def shown(self, frames: Tensor) -> Tensor:
        """Augmented, where that is wanted."""
        return frames if self.augment is None else self.augment(frames)

    def pictures(self, batch: Batch) -> Tensor:
        """The real ones (B, C, n, H, W).

        Raises:
            ValueError: pictures of other channels than the clips.
        """
        if "image" not in batch:
            return self.shown(sampled(batch["video"], self.frames))
        image, video = batch["image"], batch["video"]
        if image.ndim != 4 or image.shape[1] != video.shape[1]:
            raise ValueError(f"pictures are (B, {video.shape[1]}, H, W) beside these clips, not {tuple(image.shape)}")
        return self.shown(image[:, :, None].expand(-1, -1, self.frames, -1, -1))

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """Consistency of the motion, and the critic's term."""
        own = reached.estimate.x0
        loss = self.weighted(self.motion_loss(own, reached.wanted), reached.t, reached.s)
        self.values["train/motion_size"] = (self.motion(own.detach()).norm() / own.detach().norm()).detach()
        frames = self.seen(own)
        return {"motion": loss.mean(), "adversarial": self.adversarial(frames, frames, drawn.cond, None)}

    def critic_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """Pictures against frames."""
        fake, real = self.seen(reached.estimate.x0), self.pictures(batch)
        found = self.adversary.critic_terms(self.heads, self.backbone, fake, real, drawn.cond, None, self.done)
        return {name: v.mean() for name, v in found.items()}

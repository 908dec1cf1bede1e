"""Progressive rendering distillation: a few-step generator of triplanes learns from an image model alone (arXiv:2503.21694).

    z ~ N(0, I)
    for k = 1 .. K:   z_t = path.sample(sg(z0), eps, t_k)      eps fresh at every k, pure noise at k = 1
                      z0 = D_student(z_t, t_k, cond)           gradients through this step alone
                      x_k = views rendered from decode(z0) by new random cameras
    loss = 1/K sum_k score distillation of x_k + regularisers of the fields

The K losses are one batch of K B samples for the core's methods, whose mean is the 1/K; rendering is all that is added to them.
K = 1 is the one-pass distillation of Instant3D (arXiv:2311.08403). Paper and code differ: the released recipe is `RenderedASD` with
ratio_later = 0 for its colour teachers, that is CSD; its normaliser is computed from clean latents, here from the noised ones (DMD's).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.distill.alternating import AlternatingDistiller, Drawn
from fewstep.distill.asd import ASD
from fewstep.distill.dmd import DMD
from fewstep.distill.rollout import Reached
from fewstep.distill.sds import SDS
from fewstep.distill.sid import SIM
from fewstep.estimate import Estimate
from fewstep.train.shell import Batch, Terms
from fewstep_3d.anchors import Anchors, tied
from fewstep_3d.annealing import Annealed
from fewstep_3d.cameras import Cameras
from fewstep_3d.fields import Grid
from fewstep_3d.opacity import NeuS
from fewstep_3d.renderer import Renderer
from fewstep_3d.samplers import Stratified
from fewstep_3d.triplane_generator import TriplaneGenerator
from fewstep_3d.view_teacher import ViewTeacher


class Rendering(AlternatingDistiller):
    """What rendering changes of a score-distillation method; put before it among the bases.

    Args:
        teacher: of views; its rig is what the student is looked at with.
        student: of fields; steps: K.
        renderer: with normals, that of the teacher's data.
        annealed: narrows the times of the method, which are as given without.
        anchors: samples of the teacher, or data, that the noise of a class-conditional student is tied to.
        eikonal: factor of mean (|grad f| - 1)^2; sparsity: of mean sqrt(opacity^2 + .01), PRD's, to 0 by the end of training.
    """

    def __init__(
        self,
        teacher: ViewTeacher,
        iterations: int,
        student: TriplaneGenerator,
        renderer: Renderer = Renderer(NeuS(20.0), Stratified(28), normals=True),
        annealed: Annealed | None = None,
        anchors: Anchors | None = None,
        eikonal: float = 0.02,
        sparsity: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, student=student, **kwargs)
        self.renderer, self.annealed, self.eikonal, self.sparsity = renderer, annealed, eikonal, sparsity
        self.anchors = anchors
        if anchors is not None and not (
            student.net.means and student.net.classes and anchors.numbers <= student.net.channels
        ):
            raise ValueError(
                f"anchors need a student of classes that is told the means of its noise, with at least {anchors.numbers} channels, "
                f"not means: {student.net.means}, classes: {student.net.classes}, channels: {student.net.channels}"
            )
        self._samples: Tensor | None = None
        self._fields: Grid | None = None
        self._opacity: Tensor | None = None
        self._cameras: Cameras | None = None
        self._asked: Cond = {}

    def loss(self, batch: Batch) -> Terms:
        """The method's, at the times of this share of the training."""
        if self.annealed is not None:
            self.times = self.annealed.at(self.progress)
        return super().loss(batch)

    def drawn(self, batch: Batch) -> Drawn:
        """Conditions of K B objects (step after step), cameras (random ones, or those of the batch: "c2w", (K B V, 4, 4)), and noise of B
        latents; data where the batch has some."""
        student, teacher = cast(TriplaneGenerator, self.student), cast(ViewTeacher, self.teacher)
        latents, cond, _ = student.prepare(batch)
        self._asked = cond
        k, n = student.steps, len(latents)
        cameras = teacher.rig.posed(batch["c2w"]) if "c2w" in batch else teacher.rig.draw(k * n)
        self._cameras = cameras.to(self.device)
        many = {name: v.repeat(k, *[1] * (v.ndim - 1)) for name, v in cond.items()}
        shape = (k * n, *(teacher.shape or ()))
        fits = "x0" in batch and batch["x0"].shape[1:] == shape[1:]
        real = batch["x0"].repeat(k, 1, 1, 1) if fits else latents.new_zeros(shape)
        noise = torch.randn_like(latents)
        if self.anchors is not None:
            samples, codes = self.anchors.draw(cond["label"], teacher, student.net.classes)
            noise, self._samples = tied(noise, codes), samples.repeat(k, 1, 1, 1)
        return Drawn(real, teacher.told(many, self._cameras), None, self.guidance.draw(real), noise)

    def reach(self, drawn: Drawn, cond: Cond) -> Reached:
        """The views of every step of the student, (K B, ...)."""
        student, teacher, noise = (
            cast(TriplaneGenerator, self.student),
            cast(ViewTeacher, self.teacher),
            drawn.noise,
        )
        latents, states, times = progressive(student, noise, self._asked)
        assert self._cameras is not None
        self._fields = student.table(latents)
        rendered = self.renderer.views(self._fields, self._cameras, len(latents))
        self._opacity = rendered.opacity
        views = teacher.see(rendered)
        return Reached(states, times, Estimate(views, views), torch.zeros_like(times))

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The method's, and the regularisers."""
        terms = super().student_terms(reached, drawn, batch)
        assert self._fields is not None and self._opacity is not None
        if self.eikonal:
            terms["eikonal"] = self.eikonal * self._fields.eikonal()
        if self.anchors is not None:
            assert self._samples is not None
            teacher = cast(ViewTeacher, self.teacher)
            cameras = self.anchors.cameras(teacher.rig, len(self._samples)).to(self.device)
            seen = teacher.see(self.renderer.views(self._fields, cameras, len(self._samples)))
            terms["anchors"] = self.anchors.pull(seen, self._samples, teacher.denoiser.path).mean()
        if self.sparsity:
            terms["sparsity"] = self.sparsity * (1 - self.progress) * (self._opacity.square() + 0.01).sqrt().mean()
        return terms

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What its own shapes are worth; they are in another space than the teacher's samples."""
        return cast(TriplaneGenerator, model).scores(batch)

    def preview(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The student's shapes alone."""
        return cast(TriplaneGenerator, model).preview(batch)


def progressive(student: TriplaneGenerator, noise: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
    """The K estimates of one pass, each with the graph of its own step -> (z0, z_t: (K B, ...), t: (K B,)), step after step."""
    path, denoise = student.denoiser.path, student.denoiser.bind(cond)
    times = student.grid(path, student.steps)[: student.steps]
    state, found, times = student.begin(noise, None, float(times[0])), [], times.to(noise.device)
    for k, t in enumerate(times):
        t = t.expand(len(noise))
        if k:
            state = path.sample(found[-1][0].detach(), torch.randn_like(noise), t)
        found.append((denoise(state, t).x0, state, t))
    z0, states, t = (torch.cat(x) for x in zip(*found, strict=True))
    return z0, states, t


class RenderedSDS(Rendering, SDS):
    """SDS through the renderer (DreamFusion); Instant3D with K = 1."""


class RenderedASD(Rendering, ASD):
    """ASD through the renderer; CSD where ratio_later = 0."""


class RenderedDMD(Rendering, DMD):
    """DMD through the renderer; VSD with weight `ByTime`, adapters and a dropped share of conditions."""


class RenderedSIM(Rendering, SIM):
    """SIM through the renderer."""

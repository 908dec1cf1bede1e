"""Derivatives of networks along a direction, J v = d/dh f(x + h v) at h = 0: by forward mode, or by differences.

Forward mode carries (value, derivative) through the network, which costs about two evaluations. torch's own rules cost
four: they run each convolution and linear layer a third time, on zeros in place of the derivative of its weights, treat
the constant factor of a product as one that moves by zero (a millisecond of bookkeeping each), and build attention from
many passes over its matrix; and group normalisation has no rule in the channels_last format. `Rules` replaces those:

    W x + b, c x            W x', c x'
    group normalisation     (x' - mean x' - n mean(n x')) g / std,   n = (x - mean x) / std
    attention, P = softmax(q k^T c)     P' = P (S' - sum P S'),   S' = (q' k^T + q k'^T) c;   P' v + P v'

Other operations keep torch's rules; one without a rule raises, and `forward_mode_gap` names the module it is in.
Differences need only evaluations, and are the choice where forward mode is not supported at all (FSDP, torch.compile,
custom kernels).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Mode = Literal["forward", "difference"]


def jvp(
    f: Callable[..., Tensor],
    at: Sequence[Tensor],
    along: Sequence[Tensor | None],
    mode: Mode = "forward",
    h: float | None = None,
) -> Tensor:
    """The derivative of f along a direction, without gradient.

    Random numbers that f draws (dropout) are drawn again by the evaluation that follows: the same masks.

    Args:
        f: a function of len(at) tensors.
        along: one direction per argument, of its shape and dtype; None: it does not move.
        mode: "forward": exact; "difference": (f(at + h along) - f(at - h along)) / 2h, two evaluations.
        h: of the difference; unless given, a tenth of the cube root of the dtype's resolution (5e-4 in float32): the
            error is then 1e-3 or less for time embeddings of scale 100.
    Raises:
        RuntimeError: forward mode through an operation that has none; the message names it.
    """
    devices = [at[0].device] if at[0].is_cuda else []
    with torch.no_grad():
        if mode == "difference":
            step = torch.finfo(at[0].dtype).eps ** (1 / 3) / 10 if h is None else h
            ends = []
            for k in (step, -step):
                with torch.random.fork_rng(devices):
                    ends.append(f(*(x if v is None else x + k * v for x, v in zip(at, along, strict=True))))
            return (ends[0] - ends[1]) / (2 * step)
        with torch.random.fork_rng(devices), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), Rules():
            out = f(*(x if v is None else _dual(x, v) for x, v in zip(at, along, strict=True)))
            value, rate = forward_ad.unpack_dual(out)
            return torch.zeros_like(value) if rate is None else rate


def forward_mode_gap(net: nn.Module, *inputs: Tensor, **conditions: Tensor) -> str | None:
    """One line naming the module that keeps net(*inputs, **conditions) from forward mode, and why; None if all is well.

    Also found: modules whose output does not move although their input does, because they detach it or leave torch.
    """
    names = {module: name or "the network" for name, module in net.named_modules()}
    entered: list[nn.Module] = []
    still: list[str] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append(module)

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        entered.pop()
        if any(map(_moves, (*args, *kwargs.values()))) and isinstance(out, Tensor) and not _moves(out):
            still.append(f"{names[module]} ({type(module).__name__}) loses the derivative of its input")

    hooks = []
    for module in names:
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        jvp(
            lambda *x: net(*x, **conditions),
            inputs,
            [torch.ones_like(x) if x.is_floating_point() else None for x in inputs],
        )
    except (RuntimeError, NotImplementedError) as err:
        where = entered[-1] if entered else net
        return f"{names[where]} ({type(where).__name__}) has no forward mode: {' '.join(str(err).split())[:200]}"
    finally:
        for hook in hooks:
            hook.remove()
    return still[0] if still else None


class Rules(TorchFunctionMode):
    """The rules above in place of torch's, inside a dual level; where weights or both factors move torch's stay."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule, kwargs = RULES.get(func), kwargs or {}
        out = rule(func, *args, **kwargs) if rule else NotImplemented
        return func(*args, **kwargs) if out is NotImplemented else out


def _affine(func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
    x, dx = forward_ad.unpack_dual(input)
    if dx is None or _moves(weight) or _moves(bias):
        return NotImplemented
    return _dual(func(x, weight, bias, *args, **kwargs), func(dx, weight, None, *args, **kwargs))


def _group_norm(
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    x, dx = forward_ad.unpack_dual(input)
    if dx is None or _moves(weight) or _moves(bias):
        return NotImplemented
    out = func(x, num_groups, weight, bias, eps)
    real = torch.promote_types(x.dtype, torch.float32)
    # Splitting the channels is a view in every memory format.
    x, dx = (v.to(real).unflatten(1, (num_groups, -1)) for v in (x, dx))
    inner = tuple(range(2, x.ndim))
    var, mean = torch.var_mean(x, inner, correction=0, keepdim=True)
    x = x - mean
    slope = (x * dx).mean(inner, keepdim=True) / (var + eps)
    rate = (dx - dx.mean(inner, keepdim=True)).addcmul_(x, slope, value=-1)
    gain = (var + eps).rsqrt()
    if weight is not None:
        gain = gain * weight.to(real).reshape(num_groups, -1, *[1] * (x.ndim - 3))
    rate = rate.mul_(gain).flatten(1, 2)
    return _dual(out, rate.to(out.dtype))


def _attention(
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    (q, dq), (k, dk), (v, dv) = (forward_ad.unpack_dual(x) for x in (query, key, value))
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or (dq is None and dk is None):
        return NotImplemented
    c = q.shape[-1] ** -0.5 if scale is None else scale
    dq, dk = (torch.zeros_like(x) if dx is None else dx for x, dx in ((q, dq), (k, dk)))
    q, dq = q * c, dq * c
    logits = q @ k.mT
    p = logits.softmax(-1, torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype)
    weighted = (torch.cat([dq, q], -1) @ torch.cat([k, dk], -1).mT).mul_(p)
    out = p @ v
    rate = weighted @ v - weighted.sum(-1, keepdim=True) * out
    return _dual(out, rate if dv is None else rate + p @ dv)


def _product(func: Any, input: Any, other: Any, **options: Any) -> Any:
    (a, da), (b, db) = _parts(input), _parts(other)
    if options or (da is None) == (db is None):
        return NotImplemented
    return _dual(func(a, b), func(da, b) if db is None else func(a, db))


def _quotient(func: Any, input: Any, other: Any, **options: Any) -> Any:
    (a, da), (b, db) = _parts(input), _parts(other)
    if options or (da is None) == (db is None):
        return NotImplemented
    out = func(a, b)
    return _dual(out, func(da, b) if db is None else -out * db / b)


def _sum(func: Any, input: Any, other: Any, **options: Any) -> Any:
    (a, da), (b, db) = _parts(input), _parts(other)
    moved = db if da is None else da
    if options or moved is None or (da is not None and db is not None):
        return NotImplemented
    out = func(a, b)
    return _dual(out, moved.to(out.dtype).expand_as(out))


RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _product),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), _product),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _sum),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), _quotient),
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d), _affine),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _affine),
    F.group_norm: _group_norm,
    F.scaled_dot_product_attention: _attention,
}


def _dual(x: Tensor, dx: Tensor) -> Tensor:
    """x that moves along dx; dual numbers refuse memory that several elements share."""
    x, dx = (v.clone(memory_format=torch.contiguous_format) if 0 in v.stride() else v for v in (x, dx))
    return forward_ad.make_dual(x, dx)


def _parts(x: Any) -> tuple[Any, Tensor | None]:
    """Value and derivative of a tensor or number."""
    return forward_ad.unpack_dual(x) if isinstance(x, Tensor) else (x, None)


def _moves(x: Any) -> bool:
    return _parts(x)[1] is not None

"""Wan made causal: against diffusers' own attention under a mask, the cache against the whole call, and what leaves the window."""

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fewstep_video.nets import Classes, Wan
from fewstep_video.nets.block_attention import Window
from fewstep_video.nets.causal_wan import CausalWan

SMALL = {
    "patch_size": (1, 4, 4),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 2,
    "out_channels": 2,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 3,
}


def network(seed=0, dtype=torch.float64, **changed):
    torch.manual_seed(seed)
    return Wan({**SMALL, **changed}, Classes(3, 2, 8)).to(dtype)


def clip(frames, seed=0, batch=2, size=8, dtype=torch.float64):
    return torch.randn(batch, 2, frames, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def cond(batch=2):
    return {"label": torch.arange(batch) % 3}


class Masked:
    """diffusers' processor of self-attention with a mask (tokens, tokens): True where it looks."""

    def __init__(self, mask):
        self.mask = mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        q, k, v = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states)), attn.to_v(hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))

        def turn(x):
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
            cos, sin = rotary_emb[0][..., 0::2], rotary_emb[1][..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

        mixed = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (turn(q), turn(k), v)), attn_mask=self.mask)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


def masked_forward(net, x, past, t, size, window=None, sink=0):
    """diffusers' forward of past and the last block, clean times for the past, the mask of blocks: absolute positions."""
    net = copy.deepcopy(net)
    frames = torch.cat([past, x], 2)
    per_frame = x.shape[3] * x.shape[4] // 16
    block = torch.arange(frames.shape[2] * per_frame) // (size * per_frame)
    far = block[:, None] - block[None]
    mask = far >= 0
    if window is not None:
        mask &= (far <= window - sink) | (block[None] < sink) | ((block[:, None] <= window) & (far >= 0))
    for layer in net.model.blocks:
        layer.attn1.set_processor(Masked(mask))
    clean = torch.zeros(len(x), past.shape[2] * per_frame, dtype=t.dtype)
    times = torch.cat([clean, t[:, None].expand(-1, x.shape[2] * per_frame)], 1)
    return net(frames, times, **cond(len(x)))[:, :, past.shape[2] :]


def cached(model, past, told=None):
    """The conditions after these finished frames."""
    told = told or {**cond(len(past)), **model.empty(past)}
    for block in past.split(model.size, 2):
        told = {**told, **model.remembered(block, **told)}
    return told


# --- against diffusers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_cached_block_is_that_of_a_masked_forward(dtype, close):
    net = network(dtype=dtype)
    x, past, t = clip(2, 1, dtype=dtype), clip(6, 2, dtype=dtype), torch.tensor([0.7, 0.4], dtype=dtype)
    wanted = masked_forward(net, x, past, t, 2)
    model = CausalWan(copy.deepcopy(net), size=2, window=8, sink=2)
    found = model(x, t, **cached(model, past))
    assert (found - wanted).abs().max() <= close * wanted.abs().max()
    assert (model(x, t, past=past, **cond()) - wanted).abs().max() <= close * wanted.abs().max()


@pytest.mark.parametrize(("window", "sink"), [(4, 0), (6, 2)])
def test_absolute_positions_are_a_masked_forward_where_the_window_has_moved_on(window, sink):
    net, x, past, t = network(), clip(2, 1), clip(10, 2), torch.tensor([0.7, 0.4]).double()
    wanted = masked_forward(net, x, past, t, 2, window // 2, sink // 2)
    model = CausalWan(copy.deepcopy(net), 2, window, sink, "absolute")
    torch.testing.assert_close(model(x, t, **cached(model, past)), wanted, rtol=0, atol=1e-12)


def test_one_block_is_what_the_bidirectional_network_makes_of_it():
    net, x, t = network(), clip(4), torch.tensor([0.3, 0.9]).double()
    model = CausalWan(copy.deepcopy(net), 4, 8, 0)
    torch.testing.assert_close(model(x, t, **cond()), net(x, t, **cond()), rtol=0, atol=1e-12)


# --- the cache and the training's call ----------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["rebased", "absolute"])
@pytest.mark.parametrize(("window", "sink"), [(2, 0), (4, 2), (6, 2), (12, 4)])
def test_all_blocks_at_once_are_the_cached_ones_one_by_one(positions, window, sink):
    model = CausalWan(network(), 2, window, sink, positions)
    noisy, clean, t = clip(12, 1), clip(12, 2), torch.tensor([0.7, 0.4]).double()
    whole = model(noisy, t, past=clean, **cond())
    told = {**cond(), **model.empty(clean)}
    for n, (x, finished) in enumerate(zip(noisy.split(2, 2), clean.split(2, 2), strict=True)):
        found = model(x, t, **told)
        torch.testing.assert_close(found, whole[:, :, 2 * n : 2 * n + 2], rtol=0, atol=1e-12)
        torch.testing.assert_close(model(x, t, past=clean[:, :, : 2 * n], **cond()), found, rtol=0, atol=1e-12)
        told = {**told, **model.remembered(finished, **told)}


def test_float32_cache_and_whole_call_agree_within_a_hundred_thousandth():
    model = CausalWan(network(dtype=torch.float32), 2, 4, 2)
    noisy, clean, t = clip(12, 1).float(), clip(12, 2).float(), torch.tensor([0.7, 0.4])
    whole = model(noisy, t, past=clean, **cond())
    told = cached(model, clean[:, :, :10])
    assert (model(noisy[:, :, 10:], t, **told) - whole[:, :, 10:]).abs().max() < 1e-5


def test_a_block_knows_nothing_of_later_ones_nor_of_what_has_left_the_window():
    model = CausalWan(network(), 2, 4, 2)  # sink of block 0 and one block more
    noisy, clean, t = clip(12, 1), clip(12, 2), torch.tensor([0.7, 0.4]).double()
    before = model(noisy, t, past=clean, **cond())

    def touched(frame):
        other = clean.clone()
        other[:, :, frame] += 1
        changed = (model(noisy, t, past=other, **cond()) - before).abs().amax((0, 1, 3, 4)).reshape(6, 2).amax(1)
        return changed > 0

    assert touched(1).tolist() == [False, True, True, True, True, True], "all later blocks look at the sink"
    assert touched(9).tolist() == [False] * 5 + [True]
    # Block 1 reaches blocks 2 directly, and later ones only through what block 2 left behind: two layers of three.
    one_layer = CausalWan(network(num_layers=1), 2, 4, 2)
    plain = one_layer(noisy, t, past=clean, **cond())
    other = clean.clone()
    other[:, :, 3] += 1
    gone = (one_layer(noisy, t, past=other, **cond()) - plain).abs().amax((0, 1, 3, 4)).reshape(6, 2).amax(1)
    assert (gone > 0).tolist() == [False, False, True, False, False, False]


def test_the_sink_is_never_dropped_and_the_oldest_other_block_goes_first():
    model = CausalWan(network(), 2, 6, 2)
    frames = clip(12, 3)
    tokens, told, held = model.tokens(frames), {**cond(), **model.empty(frames)}, []
    for n, block in enumerate(frames.split(2, 2)):
        before = told["cache"]
        told = {**told, **model.remembered(block, **told)}
        held.append(told["cache"].shape[3] // tokens)
        new, left = told["cache"], 3 * tokens
        if n >= 3:
            assert torch.equal(new[:, :, :, :tokens], before[:, :, :, :tokens])
            assert torch.equal(new[:, :, :, tokens : left - tokens], before[:, :, :, 2 * tokens :])
        assert (told["place"] == n + 1).all()
    assert held == [1, 2, 3, 3, 3, 3]


def test_windows_see_the_sink_and_the_last():
    window = Window(3, 1)
    assert [window.seen(k) for k in range(6)] == [[], [0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4]]
    assert window.at(5) == (0, 1, 2, 3) and Window(3, 1, "absolute").at(5) == (0, 3, 4, 5)
    assert [Window(2, 0).seen(k) for k in (1, 2, 5)] == [[0], [0, 1], [3, 4]]


def test_gradients_reach_the_weights_and_recomputed_activations_change_nothing():
    found = []
    for again in (False, True):
        model = CausalWan(network(), 2, 4, 2)
        if again:
            model.net.model.enable_gradient_checkpointing()
        model(clip(8, 1), torch.tensor([0.7, 0.4]).double(), past=clip(8, 2), **cond()).square().mean().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(list(model.parameters()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_sizes_are_whole_blocks_of_whole_patches():
    with pytest.raises(ValueError, match="got size 2, window 5, sink 2"):
        CausalWan(network(), 2, 5, 2)
    with pytest.raises(ValueError, match="whole patches of 2 frames"):
        CausalWan(network(patch_size=(2, 4, 4)), 1, 4, 1)
    with pytest.raises(ValueError, match="sink of 0 to 1"):
        CausalWan(network(), 2, 4, 4)
    model, t = CausalWan(network(), 2, 4, 2), torch.zeros(2).double()
    with pytest.raises(ValueError, match="4 frames after 2 are neither"):
        model(clip(4), t, past=clip(2), **cond())
    with pytest.raises(ValueError, match="one block of 2 frames, not 4"):
        model(clip(4), t, **cond(), **model.empty(clip(2)))


def test_absolute_positions_end_with_the_table_and_rebased_ones_do_not():
    past, x, t = clip(8), clip(2, 1), torch.zeros(2).double()
    model = CausalWan(network(rope_max_seq_len=8), 2, 4, 2, "absolute")
    with pytest.raises(ValueError, match="positions for 8 frames, and frame 8 is asked for"):
        model(x, t, **cached(model, past))
    endless = CausalWan(network(rope_max_seq_len=8), 2, 4, 2)
    assert endless(x, t, **cached(endless, torch.cat([past] * 3, 2))).isfinite().all()

"""Products, convolutions, norms and attention."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F

from advisor.targets.coreml.mil.registry import Call, operator

Tensor = torch.Tensor

CONVOLUTIONS: Final = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: Final = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def same_padding(call: Call, sizes: list[int], kernel: list[int], strides: list[int]) -> list[int]:
    """[before, after, ...] of every spatial dimension for a call's ``pad_type``."""
    kind = call.text("pad_type", "valid")
    if kind == "custom":
        return call.ints("pad", [0] * (2 * len(kernel)))
    if kind == "valid":
        return [0] * (2 * len(kernel))
    pads: list[int] = []
    for size, extent, stride in zip(sizes, kernel, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        less, more = total // 2, total - total // 2
        pads += [more, less] if kind == "same_lower" else [less, more]
    return pads


def to_torch_pads(pads: list[int]) -> list[int]:
    """The same for ``torch.nn.functional.pad``: the last dimension first."""
    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)]
    return [pad for pair in reversed(pairs) for pad in pair]


@operator("conv")
def _conv(call: Call) -> Tensor:
    x, weight = call.tensor("x"), call.tensor("weight")
    spatial = x.ndim - 2
    strides = call.ints("strides", [1] * spatial)
    dilations = call.ints("dilations", [1] * spatial)
    kernel = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)]
    pads = same_padding(call, list(x.shape[2:]), kernel, strides)
    padded = F.pad(x, to_torch_pads(pads)) if any(pads) else x
    convolve = CONVOLUTIONS[spatial]
    made: Tensor = convolve(
        padded,
        weight,
        call.optional("bias"),
        stride=strides,
        dilation=dilations,
        groups=call.int("groups", 1),
    )
    return made


@operator("conv_transpose")
def _conv_transpose(call: Call) -> Tensor:
    x, weight = call.tensor("x"), call.tensor("weight")
    spatial = x.ndim - 2
    made: Tensor = TRANSPOSED[spatial](
        x,
        weight,
        call.optional("bias"),
        stride=call.ints("strides", [1] * spatial),
        dilation=call.ints("dilations", [1] * spatial),
        groups=call.int("groups", 1),
    )
    before = [0] * spatial
    if call.text("pad_type", "valid") == "custom":
        before = call.ints("pad", [0] * (2 * spatial))[0::2]
    for axis, (start, size) in enumerate(zip(before, call.shapes[0][2:], strict=True), 2):
        missing = start + size - made.shape[axis]
        if missing > 0:  # an output padding: rows that no input reaches hold the bias
            made = _extend(made, axis, missing, call.optional("bias"))
        made = made.narrow(axis, start, size)
    return made


def _extend(x: Tensor, axis: int, count: int, bias: Tensor | None) -> Tensor:
    shape = list(x.shape)
    shape[axis] = count
    more = x.new_zeros(shape)
    if bias is not None:
        more = more + bias.reshape(1, -1, *[1] * (x.ndim - 2))
    return torch.cat([x, more], dim=axis)


@operator("linear")
def _linear(call: Call) -> Tensor:
    return F.linear(call.tensor("x"), call.tensor("weight"), call.optional("bias"))


@operator("matmul")
def _matmul(call: Call) -> Tensor:
    x, y = call.tensor("x"), call.tensor("y")
    x = x.transpose(-1, -2) if call.int("transpose_x") else x
    y = y.transpose(-1, -2) if call.int("transpose_y") else y
    return x @ y


@operator("einsum")
def _einsum(call: Call) -> Tensor:
    made: Tensor = torch.einsum(call.text("equation"), *call.tensors("values"))
    return made


@operator("scaled_dot_product_attention")
def _attention(call: Call) -> Tensor:
    mask = call.optional("attn_mask")
    query, key, value = (call.tensor(name) for name in ("query", "key", "value"))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        is_bool = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if is_bool else scores + mask
    mixed: Tensor = scores.softmax(dim=-1) @ value
    return mixed


@operator("softmax")
def _softmax(call: Call) -> Tensor:
    return call.tensor("x").softmax(dim=call.int("axis", -1))


@operator("layer_norm")
def _layer_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    axes = call.ints("axes", range(1, x.ndim))
    shape = [x.shape[axis] for axis in axes]
    mean = x.mean(dim=axes, keepdim=True)
    variance = (x - mean).square().mean(dim=axes, keepdim=True)
    made = (x - mean) / torch.sqrt(variance + call.float("epsilon", 1e-5))
    gamma, beta = call.optional("gamma"), call.optional("beta")
    made = made if gamma is None else made * gamma.reshape(shape)
    return made if beta is None else made + beta.reshape(shape)


@operator("batch_norm")
def _batch_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    shape = [1, -1, *[1] * (x.ndim - 2)]
    spread = torch.sqrt(call.tensor("variance") + call.float("epsilon", 1e-5)).reshape(shape)
    made = (x - call.tensor("mean").reshape(shape)) / spread
    return _scaled(call, made, shape)


@operator("instance_norm")
def _instance_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    axes = list(range(2, x.ndim))
    mean = x.mean(dim=axes, keepdim=True)
    variance = (x - mean).square().mean(dim=axes, keepdim=True)
    made = (x - mean) / torch.sqrt(variance + call.float("epsilon", 1e-5))
    return _scaled(call, made, [1, -1, *[1] * (x.ndim - 2)])


def _scaled(call: Call, x: Tensor, shape: list[int]) -> Tensor:
    gamma, beta = call.optional("gamma"), call.optional("beta")
    x = x if gamma is None else x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


@operator("l2_norm")
def _l2_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    axes = list(range(x.ndim - 3, x.ndim))
    square = x.square().sum(dim=axes, keepdim=True)
    return x / torch.sqrt(square + call.float("epsilon", 1e-6))


@operator("local_response_norm")
def _local_response_norm(call: Call) -> Tensor:
    return F.local_response_norm(
        call.tensor("x"),
        call.int("size"),
        call.float("alpha", 1e-4),
        call.float("beta", 0.75),
        call.float("k", 1.0),
    )


@operator("max_pool")
def _max_pool(call: Call) -> Tensor:
    x, kernel, strides, pads = _pooling(call)
    padded = F.pad(x, pads, value=float("-inf")) if any(pads) else x
    functions = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
    made: Tensor = functions[len(kernel)](
        padded, kernel, strides, ceil_mode=bool(call.int("ceil_mode"))
    )
    return _cropped(made, call)


@operator("avg_pool")
def _avg_pool(call: Call) -> Tensor:
    x, kernel, strides, pads = _pooling(call)
    functions = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
    pool, ceil = functions[len(kernel)], bool(call.int("ceil_mode"))
    padded = F.pad(x, pads) if any(pads) else x
    made: Tensor = pool(padded, kernel, strides, ceil_mode=ceil)
    if call.int("exclude_padding_from_average") and any(pads):
        inside = F.pad(torch.ones_like(x), pads)
        made = made / pool(inside, kernel, strides, ceil_mode=ceil)
    return _cropped(made, call)


def _pooling(call: Call) -> tuple[Tensor, list[int], list[int], list[int]]:
    x, kernel = call.tensor("x"), call.ints("kernel_sizes")
    strides = call.ints("strides", [1] * len(kernel))
    pads = same_padding(call, list(x.shape[2:]), kernel, strides)
    return x, kernel, strides, to_torch_pads(pads)


def _cropped(x: Tensor, call: Call) -> Tensor:
    """A last window that would begin in the padding is left out."""
    for axis, size in enumerate(call.shapes[0][2:], 2):
        x = x.narrow(axis, 0, size)
    return x

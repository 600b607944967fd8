"""Operators that rearrange, take apart, fill or look up; no number is changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from advisor.targets.coreml.mil.layers import to_torch_pads
from advisor.targets.coreml.mil.registry import Call, operator

Tensor = torch.Tensor


@operator("reshape")
def _reshape(call: Call) -> Tensor:
    x = call.tensor("x")
    sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(call.ints("shape"))]
    return x.reshape(sizes)


@operator("reshape_like")
def _reshape_like(call: Call) -> Tensor:
    return call.tensor("x").reshape(call.shapes[0])


@operator("flatten2d")
def _flatten2d(call: Call) -> Tensor:
    return call.tensor("x").reshape(call.shapes[0])


@operator("transpose")
def _transpose(call: Call) -> Tensor:
    return call.tensor("x").permute(call.ints("perm"))


@operator("expand_dims")
def _expand_dims(call: Call) -> Tensor:
    x = call.tensor("x")
    axes = call.ints("axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("squeeze")
def _squeeze(call: Call) -> Tensor:
    x = call.tensor("x")
    return x.squeeze(call.ints("axes")) if call.inputs.get("axes") is not None else x.squeeze()


@operator("concat")
def _concat(call: Call) -> Tensor:
    values, axis = call.tensors("values"), call.int("axis")
    if call.int("interleave"):
        axis %= values[0].ndim
        return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, dim=axis)


@operator("stack")
def _stack(call: Call) -> Tensor:
    return torch.stack(call.tensors("values"), dim=call.int("axis"))


@operator("split")
def _split(call: Call) -> Sequence[Tensor]:
    x, axis = call.tensor("x"), call.int("axis")
    sizes = call.ints("split_sizes")
    if not sizes:
        count = call.int("num_splits")
        sizes = [x.shape[axis] // count] * count
    return list(torch.split(x, sizes, dim=axis))


@operator("slice_by_index")
def _slice_by_index(call: Call) -> Tensor:
    x = call.tensor("x")
    begin, end = call.ints("begin"), call.ints("end")
    rank = len(begin)
    steps = call.ints("stride", [1] * rank)
    open_begin, open_end = call.flags("begin_mask", rank), call.flags("end_mask", rank)
    single = call.flags("squeeze_mask", rank)
    for axis in range(rank):
        size, step = x.shape[axis], steps[axis]
        if single[axis]:
            index = begin[axis] % size
            x = x.narrow(axis, index, 1)
            continue
        start = None if open_begin[axis] else begin[axis]
        stop = None if open_end[axis] else end[axis]
        places = torch.arange(size)[slice(start, stop)] if step > 0 else None
        if places is None:  # torch has no negative steps
            places = torch.tensor(range(size)[slice(start, stop, step)], dtype=torch.int64)
        else:
            places = places[::step]
        x = x.index_select(axis, places)
    return x.squeeze([axis for axis in range(rank) if single[axis]])


@operator("slice_by_size")
def _slice_by_size(call: Call) -> Tensor:
    x = call.tensor("x")
    for axis, (begin, size) in enumerate(zip(call.ints("begin"), call.ints("size"), strict=True)):
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


@operator("crop")
def _crop(call: Call) -> Tensor:
    x = call.tensor("x")
    for axis, name in ((-2, "crop_height"), (-1, "crop_width")):
        before, after = call.ints(name)
        x = x.narrow(axis, before, x.shape[axis] - before - after)
    return x


@operator("slice_update")
def _slice_update(call: Call) -> Tensor:
    x = call.tensor("x").clone()
    begin, end = call.ints("begin"), call.ints("end")
    rank = len(begin)
    steps = call.ints("stride", [1] * rank)
    open_begin, open_end = call.flags("begin_mask", rank), call.flags("end_mask", rank)
    single = call.flags("squeeze_mask", rank)
    places = tuple(
        begin[axis]
        if single[axis]
        else slice(
            None if open_begin[axis] else begin[axis],
            None if open_end[axis] else end[axis],
            steps[axis],
        )
        for axis in range(rank)
    )
    x[places] = call.tensor("update").to(x.dtype)
    return x


@operator("gather")
def _gather(call: Call) -> Tensor:
    x, indices, axis = call.tensor("x"), call.tensor("indices").long(), call.int("axis")
    dims = call.int("batch_dims")
    axis %= x.ndim
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if not dims:
        made = x.index_select(axis, indices.reshape(-1))
        return made.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    lead = x.shape[:dims]
    rows = x.reshape(-1, *x.shape[dims:])
    places = indices.reshape(-1, *indices.shape[dims:])
    parts = [
        row.index_select(axis - dims, place.reshape(-1)).reshape(
            *row.shape[: axis - dims], *place.shape, *row.shape[axis - dims + 1 :]
        )
        for row, place in zip(rows, places, strict=True)
    ]
    return torch.stack(parts).reshape(*lead, *parts[0].shape)


@operator("gather_along_axis")
def _gather_along_axis(call: Call) -> Tensor:
    x, axis = call.tensor("x"), call.int("axis")
    indices = call.tensor("indices").long()
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@operator("gather_nd")
def _gather_nd(call: Call) -> Tensor:
    x, indices = call.tensor("x"), call.tensor("indices").long()
    dims = call.int("batch_dims")
    lead = x.shape[:dims]
    rows = x.reshape(-1, *x.shape[dims:])
    places = indices.reshape(-1, *indices.shape[dims:])
    parts = [row[place.unbind(-1)] for row, place in zip(rows, places, strict=True)]
    return torch.stack(parts).reshape(*lead, *parts[0].shape)


@operator("scatter_nd")
def _scatter_nd(call: Call) -> Tensor:
    made = call.tensor("data").clone()
    places = call.tensor("indices").long().unbind(-1)
    updates = call.tensor("updates").to(made.dtype)
    match call.text("mode", "add"):
        case "update":
            made[places] = updates
        case "add":
            made.index_put_(places, updates, accumulate=True)
        case mode:
            raise ValueError(f"scatter_nd with mode {mode!r} is not known")
    return made


@operator("shape")
def _shape(call: Call) -> Tensor:
    return torch.tensor(call.tensor("x").shape)


@operator("tile")
def _tile(call: Call) -> Tensor:
    return call.tensor("x").repeat(call.ints("reps"))


@operator("pad")
def _pad(call: Call) -> Tensor:
    x, pads = call.tensor("x"), to_torch_pads(call.ints("pad"))
    match call.text("mode", "constant"):
        case "constant":
            return F.pad(x, pads, value=call.float("constant_val"))
        case mode:
            while len(pads) > 2 and not any(pads[-2:]):  # torch takes but the dimensions of space
                pads = pads[:-2]
            return F.pad(x, pads, mode=mode)


@operator("fill")
def _fill(call: Call) -> Tensor:
    return torch.full(call.shapes[0], call.float("value"))


@operator("fill_like")
def _fill_like(call: Call) -> Tensor:
    return torch.full(call.shapes[0], call.float("value"))


@operator("range_1d")
def _range_1d(call: Call) -> Tensor:
    return torch.arange(call.float("start"), call.float("end"), call.float("step", 1.0))


@operator("one_hot")
def _one_hot(call: Call) -> Tensor:
    hot = F.one_hot(call.tensor("indices").long(), call.int("one_hot_vector_size"))
    axis = call.int("axis", -1)
    hot = hot.movedim(-1, axis) if axis != -1 else hot
    return torch.where(hot.bool(), call.float("on_value", 1.0), call.float("off_value", 0.0))


@operator("band_part")
def _band_part(call: Call) -> Tensor:
    x = call.tensor("x")
    lower, upper = call.int("lower", -1), call.int("upper", -1)
    x = x if lower < 0 else x.triu(-lower)
    return x if upper < 0 else x.tril(upper)


@operator("reverse")
def _reverse(call: Call) -> Tensor:
    x = call.tensor("x")
    return x.flip(call.ints("axes", range(x.ndim)))


@operator("pixel_shuffle")
def _pixel_shuffle(call: Call) -> Tensor:
    return F.pixel_shuffle(call.tensor("x"), call.int("upscale_factor"))


@operator("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Tensor:
    return F.pixel_unshuffle(call.tensor("x"), call.int("downscale_factor"))


@operator("space_to_depth")
def _space_to_depth(call: Call) -> Tensor:
    x, size = call.tensor("x"), call.int("block_size")
    rows, channels, height, width = x.shape
    cut = x.reshape(rows, channels, height // size, size, width // size, size)
    return cut.permute(0, 3, 5, 1, 2, 4).reshape(call.shapes[0])


@operator("depth_to_space")
def _depth_to_space(call: Call) -> Tensor:
    x, size = call.tensor("x"), call.int("block_size")
    rows, channels, height, width = x.shape
    cut = x.reshape(rows, size, size, channels // size**2, height, width)
    return cut.permute(0, 3, 4, 1, 5, 2).reshape(call.shapes[0])


@operator("sliding_windows")
def _sliding_windows(call: Call) -> Tensor:
    x, axis = call.tensor("x"), call.int("axis")
    made = x.unfold(axis, call.int("size"), call.int("stride", 1))
    return made.movedim(-1, axis % x.ndim + 1)

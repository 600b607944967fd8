"""Images of another size."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from advisor.targets.coreml.mil.registry import Call, operator

Tensor = torch.Tensor


@operator("upsample_nearest_neighbor", "resize_nearest_neighbor")
def _nearest(call: Call) -> Tensor:
    return F.interpolate(_images(call), size=call.shapes[0][-2:], mode="nearest").reshape(
        call.shapes[0]
    )


@operator("upsample_bilinear")
def _upsample_bilinear(call: Call) -> Tensor:
    made = F.interpolate(
        _images(call),
        size=call.shapes[0][-2:],
        mode="bilinear",
        align_corners=bool(call.int("align_corners", 1)),
    )
    return made.reshape(call.shapes[0])


@operator("resize_bilinear", "resize")
def _resize(call: Call) -> Tensor:
    """Along one axis after the other, from the places that the sampling mode says."""
    mode = call.text("sampling_mode", "DEFAULT")
    nearest = call.text("interpolation_mode", "LINEAR") != "LINEAR"
    x = call.tensor("x")
    for axis in (-2, -1):
        found = _places(mode, x.shape[axis], call.shapes[0][axis])
        found = found.round() if nearest else found
        below = found.floor().long()
        above = (below + 1).clamp(max=x.shape[axis] - 1)
        share = (found - below).to(x.dtype)
        share = share.unsqueeze(-1) if axis == -2 else share
        low, high = x.index_select(axis, below), x.index_select(axis, above)
        x = low * (1 - share) + high * share
    return x


def _images(call: Call) -> Tensor:
    x = call.tensor("x")
    return x.reshape(-1, 1, *x.shape[-2:]) if x.ndim != 4 else x


def _places(mode: str, old: int, new: int) -> Tensor:
    """Where along an axis of ``old`` pixels each of ``new`` is taken from."""
    steps = torch.arange(new, dtype=torch.float64)
    match mode:
        case "STRICT_ALIGN_CORNERS" | "ALIGN_CORNERS":
            places = steps * ((old - 1) / max(new - 1, 1))
            if new == 1 and mode == "ALIGN_CORNERS":
                places = torch.full_like(steps, (old - 1) / 2)
        case "DEFAULT":
            places = steps * ((old - old / new) / max(new - 1, 1))
        case "OFFSET_CORNERS":
            delta = max(1, old - 1) / new
            places = 0.5 * delta + steps * delta
        case _:  # UNALIGN_CORNERS
            places = (steps + 0.5) * (old / new) - 0.5
    return places.clamp(0, old - 1)

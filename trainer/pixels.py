"""Pictures as a data format gives them to what a pretrained image encoder was trained on: resized, cropped, normalised.

It happens in the model, on its device, in torch: the same bits on any machine that has the picture, and no second
library decides on them. The picture is resized one axis after the other with rounding to whole grey levels in between,
as Pillow does; Pillow's coefficients are fixed-point numbers, so that a few pixels in a thousand differ by one level.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import interpolate

from miner.artifacts.errors import BadInput

__all__ = ["Preprocessing"]

Mode = Literal["bilinear", "bicubic"]
Size = tuple[int, int]


class Preprocessing(BaseModel):
    """Resize, crop the centre, normalise.

    `shortest_edge` scales a picture until its shorter side is that long; without it the picture becomes `size`
    (height, width), whatever its shape was. With it, `size` is cut from the middle. `mean` and `std` are per channel of
    values in 0..1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: Size
    shortest_edge: int | None = Field(default=None, ge=1)
    mode: Mode = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of_processor(cls, processor: Any, where: str) -> Preprocessing:
        """What an image processor of `transformers` does. Raises BadInput for one that does something else as well."""
        modes: dict[int, Mode] = {2: "bilinear", 3: "bicubic"}
        mode = modes.get(int(processor.resample))
        if mode is None or not (processor.do_resize and processor.do_rescale and processor.do_normalize):
            raise BadInput(
                f"{where}: its image processor does not resize (bilinear or bicubic), rescale and normalise; "
                "give a model whose preprocessing is of that kind."
            )
        wanted, crop = processor.size, processor.crop_size if processor.do_center_crop else None
        edge = wanted.shortest_edge
        if edge is None:
            size = crop or wanted
            if (size.height, size.width) != (wanted.height, wanted.width):
                raise BadInput(f"{where}: its image processor crops without keeping the shape; give another model.")
        elif getattr(processor, "crop_pct", None) is not None:
            # ConvNeXT's convention, which ResNet shares: a size below 384 is the crop, a larger one is not cropped.
            size, edge = (edge, int(edge / processor.crop_pct) if edge < 384 else None)
        else:
            size = crop or edge
        height, width = (size, size) if isinstance(size, int) else (size.height, size.width)
        return cls(
            size=(height, width),
            shortest_edge=edge,
            mode=mode,
            mean=processor.image_mean,
            std=processor.image_std,
        )

    @property
    def squeezes(self) -> bool:
        """Whether a picture of any shape becomes one of `size`."""
        return self.shortest_edge is None

    @property
    def wanted(self) -> int:
        """The shorter side of a picture that is neither enlarged nor made from more pixels than it needs."""
        return self.shortest_edge or max(self.size)

    def resized(self, side: int) -> Preprocessing:
        """The same for pictures of `side` pixels, squeezed to a square if need be."""
        return self.model_copy(update={"size": (side, side), "shortest_edge": None})

    def scaled(self, height: int, width: int) -> Size:
        """The size of a picture before it is cropped. Raises BadInput when too little is left to crop."""
        if self.shortest_edge is None:
            return self.size
        edge = self.shortest_edge
        scaled = (edge, edge * width // height) if height <= width else (edge * height // width, edge)
        if scaled[0] < self.size[0] or scaled[1] < self.size[1]:
            raise BadInput(f"the model's preprocessing crops {self.size} from {scaled}, which is smaller.")
        return scaled

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) uint8 -> (B, 3, height, width) float32, normalised."""
        values = images.permute(0, 3, 1, 2).float()
        height, width = self.scaled(images.shape[1], images.shape[2])
        for size in ((images.shape[1], width), (height, width)):
            if tuple(values.shape[2:]) != size:
                values = interpolate(values, size=size, mode=self.mode, antialias=True)
                values = values.add_(0.5).floor_().clamp_(0, 255)
        top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
        values = values[:, :, top : top + self.size[0], left : left + self.size[1]]
        mean, std = (torch.tensor(numbers, device=values.device)[:, None, None] for numbers in (self.mean, self.std))
        return (values / 255 - mean) / std

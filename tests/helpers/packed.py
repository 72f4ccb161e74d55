"""A quantised base without any library: linear modules whose weights are bytes, and their loader for transformers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from helpers import tiny

METHOD = "memlaw-test-bytes"


class PackedLinear(nn.Linear):
    """A linear module with `weight` [out, in], bytes around 128, and `scale` [out, 1]; it uses their product."""

    def __init__(self, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__(d_in, d_out, bias)
        self.weight = nn.Parameter(torch.zeros(d_out, d_in, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("scale", torch.ones(d_out, 1))

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> PackedLinear:
        packed = cls(linear.in_features, linear.out_features, linear.bias is not None).to(linear.weight.dtype)
        weight = linear.weight.detach()
        packed.scale = weight.abs().amax(1, keepdim=True) / 127
        packed.weight.copy_((weight / packed.scale).round() + 128)
        packed.bias = linear.bias
        return packed

    def unpacked(self) -> Tensor:
        return (self.weight.to(self.scale.dtype) - 128) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.unpacked(), self.bias)


def model(*, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """The tiny Llama with every linear module of its layers packed."""
    built = tiny.model("llama", dtype=dtype, **changes)
    _replace(built, PackedLinear.from_linear)
    built.config.quantization_config = BytesConfig().to_dict()
    return built


def unpacked(packed: Any) -> Any:
    """An ordinary model with the same weights."""
    built = tiny.model("llama", dtype=packed.dtype)
    for name, module in packed.named_modules():
        if isinstance(module, PackedLinear):
            with torch.no_grad():
                built.get_submodule(name).weight.copy_(module.unpacked())
    return built


def _replace(built: Any, make: Any) -> None:
    for name, module in list(built.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            built.model.layers.set_submodule(name, make(module))


@register_quantization_config(METHOD)
class BytesConfig(QuantizationConfigMixin):
    def __init__(self, **_: Any) -> None:
        self.quant_method = METHOD


@register_quantizer(METHOD)
class BytesQuantizer(HfQuantizer):
    """The quantizer that transformers uses to load a checkpoint whose configuration names this method."""

    requires_calibration = True
    is_trainable = True

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        _replace(model, lambda linear: PackedLinear(linear.in_features, linear.out_features, linear.bias is not None))

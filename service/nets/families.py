"""What differs between the families of backbones: g_a, g_s, and the layers next to the latents."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from service.codec.sizes import Sizes, SwinSizes, conv_sizes
from service.errors import BadParameter
from service.nets.backbone import LinearType, Transform, analysis, synthesis
from service.nets.prompts import AnalysisPrompts, SynthesisPrompts
from service.nets.swin import SwinAnalysis, SwinSynthesis


def transforms(
    s: Sizes, linear: LinearType = nn.Linear
) -> tuple[Transform | SwinAnalysis, Transform | SwinSynthesis]:
    """Build g_a and g_s."""
    if isinstance(s, SwinSizes):
        return SwinAnalysis(s, linear), SwinSynthesis(s, linear)
    conv = conv_sizes(s)
    return analysis(conv, linear), synthesis(conv, linear)


def new_prompts(s: Sizes) -> nn.ModuleDict:
    """Prompt generators with random weights, of "g_a" and "g_s".

    Raises:
        BadParameter: the sizes are not those of a Swin backbone.
    """
    if not isinstance(s, SwinSizes):
        raise BadParameter(f"the backbone is of family {s.family}, only swin takes prompts")
    return nn.ModuleDict({"g_a": AnalysisPrompts(s), "g_s": SynthesisPrompts(s)})


@dataclass(frozen=True)
class LatentLayers:
    """Names of the layers next to the latents.

    Attributes:
        deep_out, deep_in: write and read the first c16 channels.
        straight_out, straight_in: write and read the others, among channels of their own.
    """

    deep_out: str
    straight_out: str
    deep_in: str
    straight_in: str


def latent_layers(s: Sizes) -> LatentLayers:
    """The layers of g_a and g_s next to the latents."""
    if isinstance(s, SwinSizes):
        return LatentLayers("g_a.last", "g_a.down16.l", "g_s.first", "g_s.up8.l")
    conv = conv_sizes(s)
    return LatentLayers(
        f"g_a.{conv.ne8 + conv.ne16 + 2}",
        f"g_a.{conv.ne8 + 1}.l",
        "g_s.0",
        f"g_s.{conv.nd16 + 1}.l",
    )

"""The sizes of a backbone, as stored with a model: another size needs training, not new code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from service.errors import StoreError


@dataclass(frozen=True)
class Sizes:
    """Channels and depths of the networks.

    Attributes:
        M: channels of the latents y, a multiple of 4.
        Cz: channels of the hyper-latents z.
        c8: channels at 1/8 resolution.
        c16: channels at 1/16 resolution that blocks work on, at most M; see nets/backbone.py.
        ne8: blocks of the analysis g_a at 1/8.
        ne16: blocks of g_a at 1/16.
        nd8: blocks of the synthesis g_s at 1/8.
        nd16: blocks of g_s at 1/16.
        cp: channels of the features P.
        cc: channels of the step networks.
    """

    M: int = 320
    Cz: int = 128
    c8: int = 192
    c16: int = 256
    ne8: int = 3
    ne16: int = 2
    nd8: int = 3
    nd16: int = 2
    cp: int = 192
    cc: int = 128

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Sizes:
        """Read sizes from a manifest.

        Raises:
            StoreError: a field is unknown or missing, or a value is out of range.
        """
        expected = set(asdict(cls()))
        if set(values) != expected:
            raise StoreError(f"sizes are {sorted(values)}, expected {sorted(expected)}")
        numbers: dict[str, int] = {}
        for name, value in values.items():
            if type(value) is not int or not 1 <= value <= 4096:
                raise StoreError(f"size {name} is {value!r}, expected an integer from 1 to 4096")
            numbers[name] = value
        if numbers["M"] % 4:
            raise StoreError(f"size M is {numbers['M']}, expected a multiple of 4")
        if numbers["c16"] > numbers["M"]:
            raise StoreError(f"size c16 is {numbers['c16']}, expected at most M = {numbers['M']}")
        return cls(**numbers)

    @property
    def halo(self) -> int:
        """Latents around a window that g_a or g_s reads; half a latent a block at 1/8, else one."""
        return max(-(-self.ne8 // 2) + self.ne16, -(-self.nd8 // 2) + self.nd16)

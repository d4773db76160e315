"""Entry encoders: from the last inputs to what an entry of the memory is made of."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from slm_lab.agent.net.layers import mlp
from slm_lab.spec.model import PositiveInt, SpecModel


class EntrySpec(SpecModel):
    """Keys of every entry encoder."""

    @property
    def steps(self) -> int:
        """Steps that make an entry, the present one included."""
        return 1


class Entry(nn.Module):
    """The seam: `(spec, in_size)`; the inputs of the last `window` steps u [N, window, D], oldest first, to h [N, F].

    Before an episode's first step there are only zeros. The Spec tells the window (`steps`), so that one longer than
    the memory is refused.
    """

    Spec: ClassVar[type[EntrySpec]]
    out_size: int  # F

    def __init__(self, spec: EntrySpec) -> None:
        super().__init__()
        self.window = spec.steps


class MLPEntry(Entry):
    """Fully connected layers over the present step alone.

    Sample spec: `"entry": {"name": "MLP", "hid_layers": [64]}`
    """

    class Spec(EntrySpec):
        name: Literal["MLP"] = "MLP"
        hid_layers: list[PositiveInt] = Field([64], min_length=1, description="units of each layer")

    def __init__(self, spec: Spec, in_size: int) -> None:
        super().__init__(spec)
        self.layers = mlp([in_size, *spec.hid_layers], "tanh")
        self.out_size = spec.hid_layers[-1]

    def forward(self, u: Tensor) -> Tensor:
        return self.layers.forward(u[:, -1])


class TransformerEntry(Entry):
    """A small transformer over the last steps, read at the newest one.

    Source: Vaswani et al. 2017, arXiv 1706.03762, the encoder block with layer norm before each branch.

    Sample spec: `"entry": {"name": "Transformer", "window": 4, "size": 64, "heads": 4}`
    """

    class Spec(EntrySpec):
        name: Literal["Transformer"] = "Transformer"
        window: PositiveInt = Field(4, description="steps that make an entry, the present one included")
        size: PositiveInt = Field(64, description="units of its features")
        heads: PositiveInt = Field(4, description="attention heads; they divide size")
        num_layers: PositiveInt = Field(1, description="blocks")

        @model_validator(mode="after")
        def _divides(self) -> TransformerEntry.Spec:
            if self.size % self.heads:
                raise ValueError(f"size {self.size} can't be divided among {self.heads} heads")
            return self

        @property
        def steps(self) -> int:
            return self.window

    def __init__(self, spec: Spec, in_size: int) -> None:
        super().__init__(spec)
        self.out_size = spec.size
        self.inner = nn.Linear(in_size, spec.size)
        self.place = nn.Parameter(torch.zeros(spec.window, spec.size))
        block = nn.TransformerEncoderLayer(
            spec.size, spec.heads, 2 * spec.size, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, spec.num_layers, enable_nested_tensor=False)

    def forward(self, u: Tensor) -> Tensor:
        h: Tensor = self.blocks(self.inner(u) + self.place)
        return torch.tanh(h[:, -1])

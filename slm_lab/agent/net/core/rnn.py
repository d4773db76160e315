"""Recurrent working memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from slm_lab.agent.net.core.base import Core, CoreOut
from slm_lab.lib.types import Tree
from slm_lab.spec.model import PositiveInt, SpecModel


class RecurrentSpec(SpecModel):
    """Keys that recurrent cores share."""

    hidden_size: PositiveInt = Field(64, description="units of the hidden state")
    num_layers: PositiveInt = Field(1, description="stacked layers")


class Recurrent(Core):
    """A torch recurrent net over [B, T], its state reset wherever `is_first` says."""

    state_names: tuple[str, ...]
    cell: type[nn.RNNBase]

    def __init__(self, spec: RecurrentSpec, in_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.rnn = self.cell(in_size, spec.hidden_size, spec.num_layers, batch_first=True)  # type: ignore[arg-type]
        for name, parameter in self.rnn.named_parameters():
            (nn.init.orthogonal_ if "weight" in name else nn.init.zeros_)(parameter)
        self.out_size = spec.hidden_size

    def initial(self, B: int) -> Tree:
        zeros = next(self.rnn.parameters()).new_zeros
        return {name: zeros(B, self.spec.num_layers, self.spec.hidden_size) for name in self.state_names}

    def forward(self, x: Tensor, carry: Tree, is_first: Tensor) -> CoreOut:
        T = x.shape[1]
        # Between two resets (of any row) the whole stretch runs in one call; a reset zeroes the rows it marks.
        cuts = [0, *[t for t in is_first.any(dim=0).nonzero().flatten().tolist() if t > 0], T]
        state = tuple(carry[name].transpose(0, 1) for name in self.state_names)  # [layers, B, H]
        outputs = []
        for begin, end in pairwise(cuts):
            keep = is_first[None, :, begin, None].logical_not()  # [1, B, 1]
            state = tuple((part * keep).contiguous() for part in state)
            output, state = self._run(x[:, begin:end], state)
            outputs.append(output)
        features = torch.cat(outputs, dim=1)  # [B, T, H]
        return (
            features,
            {name: part.transpose(0, 1) for name, part in zip(self.state_names, state, strict=True)},
            {},
            {},
        )

    def _run(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        output, new = self.rnn(x, state[0] if len(state) == 1 else state)
        return output, (new,) if len(state) == 1 else tuple(new)


class GRU(Recurrent):
    """Gated recurrent unit, its hidden state carried through the episode.

    Source: Cho et al. 2014, arXiv 1406.1078 (torch's variant: the reset gate acts after the matrix product). Differs:
    orthogonal weights, zero biases.

    Sample spec: `"core": {"name": "GRU", "hidden_size": 64}`
    """

    class Spec(RecurrentSpec):
        name: Literal["GRU"] = "GRU"

    cell = nn.GRU
    state_names = ("h",)


class LSTM(Recurrent):
    """Long short-term memory, its hidden and cell state carried through the episode.

    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000. Differs: orthogonal weights, zero
    biases but for the forget gate's, which begins at 1 (Jozefowicz et al. 2015), so that it begins by remembering.

    Sample spec: `"core": {"name": "LSTM", "hidden_size": 64}`
    """

    class Spec(RecurrentSpec):
        name: Literal["LSTM"] = "LSTM"
        forget_bias: float = Field(
            1.0, description="first bias of the forget gate: the larger, the longer it remembers"
        )

    cell = nn.LSTM
    state_names = ("h", "c")

    def __init__(self, spec: Spec, in_size: int) -> None:
        super().__init__(spec, in_size)
        H = spec.hidden_size
        for layer in range(spec.num_layers):
            getattr(self.rnn, f"bias_ih_l{layer}").data[H : 2 * H] = spec.forget_bias

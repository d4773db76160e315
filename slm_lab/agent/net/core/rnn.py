"""Recurrent working memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from slm_lab.agent.net.core.base import Core, CoreOut, take
from slm_lab.lib.types import Tree
from slm_lab.spec.model import PositiveInt, SpecModel

State = tuple[Tensor, ...]


class RecurrentSpec(SpecModel):
    """Keys that recurrent cores share."""

    hidden_size: PositiveInt = Field(64, description="units of the hidden state")
    num_layers: PositiveInt = Field(1, description="stacked layers")


# One more call of torch's net takes at least as long as this many steps by segments (measured on a CPU, one thread)
CALL_COST = 2


class Recurrent(Core):
    """A torch recurrent net over [B, T], its state reset wherever `is_first` says.

    There are three ways to the same numbers (to float rounding), and `forward` takes the one that is fastest: a single
    step by its cell, a window by stretches where resets are few, and by segments where they are scattered, as in short
    episodes.
    """

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

    def forward(
        self, x: Tensor, carry: Tree, is_first: Tensor, at: Tensor | None = None, rng: torch.Generator | None = None
    ) -> CoreOut:
        state = tuple(carry[name] for name in self.state_names)  # [B, layers, H]
        features, state = (self._one_step if x.shape[1] == 1 else self._window)(x, state, is_first)
        return CoreOut(take(features, at), dict(zip(self.state_names, state, strict=True)))

    def _one_step(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Acting: each layer's cell once."""
        keep = is_first.logical_not()[..., None]  # [B, 1, 1]
        x, state, after = x[:, 0], tuple(part * keep for part in state), []
        for layer, weights in enumerate(self.rnn.all_weights):
            after.append(self._step(x, tuple(part[:, layer] for part in state), weights))
            x = after[-1][0]
        return x[:, None], tuple(torch.stack(parts, dim=1) for parts in zip(*after, strict=True))

    def _window(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Learning: by stretches or by segments."""
        cuts = [0, *[t for t in is_first.any(dim=0).nonzero().flatten().tolist() if t > 0]]
        segments = _segments(is_first) if len(cuts) > 1 else None
        if segments and int(segments[1][0]) <= CALL_COST * len(cuts):
            return self._by_segments(x, state, is_first, *segments)
        return self._by_stretches(x, state, is_first, cuts)

    def _by_stretches(self, x: Tensor, state: State, is_first: Tensor, cuts: list[int]) -> tuple[Tensor, State]:
        """One call for each stretch between two resets (of any row); a reset zeroes the rows it marks."""
        state = tuple(part.transpose(0, 1) for part in state)  # [layers, B, H]
        outputs = []
        for begin, end in pairwise([*cuts, x.shape[1]]):
            keep = is_first[None, :, begin, None].logical_not()  # [1, B, 1]
            state = tuple((part * keep).contiguous() for part in state)
            output, new = self.rnn(x[:, begin:end], state[0] if len(state) == 1 else state)
            state = (new,) if len(state) == 1 else tuple(new)
            outputs.append(output)
        return torch.cat(outputs, dim=1), tuple(part.transpose(0, 1) for part in state)

    def _by_segments(
        self, x: Tensor, state: State, is_first: Tensor, begin: Tensor, length: Tensor
    ) -> tuple[Tensor, State]:
        """Every segment is a sequence of its own, and all run side by side: as many steps as the longest one has."""
        B, T, _ = x.shape
        steps = torch.arange(int(length[0]), device=x.device)[:, None]
        running = steps < length  # [longest, S]; the longest segments come first, so those that run are the first ones
        sizes = running.sum(dim=1).tolist()
        order = (begin + steps)[running]  # [B*T] in the order they run: where each row and step lies in the window
        place = torch.empty_like(order)
        place[order] = torch.arange(B * T, device=x.device)  # and back
        keep = is_first.flatten()[begin].logical_not()[:, None, None]  # a segment that goes on has its row's carry
        state = tuple(part.index_select(0, begin // T) * keep for part in state)  # [S, layers, H]
        x, ends = x.flatten(0, 1).index_select(0, order), []
        for layer, weights in enumerate(self.rnn.all_weights):
            now, seen = tuple(part[:, layer] for part in state), []
            for step in torch.split(x, sizes):
                now = self._step(step, tuple(part[: len(step)] for part in now), weights)
                seen.append(now)
            states = tuple(torch.cat(parts) for parts in zip(*seen, strict=True))  # [B*T, H]
            ends.append(tuple(part.index_select(0, place.view(B, T)[:, -1]) for part in states))
            x = states[0]
        state = tuple(torch.stack(parts, dim=1) for parts in zip(*ends, strict=True))  # [B, layers, H]
        return x.index_select(0, place).view(B, T, -1), state

    def _step(self, x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
        """One step of one layer: x [S, D], state [S, H]."""
        raise NotImplementedError


def _segments(is_first: Tensor) -> tuple[Tensor, Tensor]:
    """Where the segments between resets begin in the flat window, and their lengths, both [S]; the longest first."""
    first = is_first.clone()
    first[:, 0] = True
    begin = first.flatten().nonzero().squeeze(1)
    length = torch.diff(begin, append=begin.new_tensor([first.numel()]))
    length, order = length.sort(descending=True, stable=True)
    return begin[order], length


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

    def _step(self, x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
        return (torch.gru_cell(x, state[0], *weights),)


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

    def _step(self, x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
        return torch.lstm_cell(x, state, *weights)

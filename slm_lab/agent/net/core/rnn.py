"""Recurrent working memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from slm_lab.agent.net.core.base import Core, CoreOut, take
from slm_lab.lib.types import Tree
from slm_lab.spec.model import PositiveInt, SpecModel

State = tuple[Tensor, ...]
SHUT = -1e6  # added to what a gate gets it shuts it, subtracted it opens it, whatever else the gate gets


class RecurrentSpec(SpecModel):
    """Keys that recurrent cores share."""

    hidden_size: PositiveInt = Field(64, description="units of the hidden state")
    num_layers: PositiveInt = Field(1, description="stacked layers")


class Recurrent(Core):
    """A torch recurrent net over [B, T], its state reset wherever `is_first` says.

    Acting takes its cell once. Learning calls torch's net once a layer, though that knows no resets and wants sequences
    of one length: the window is laid out in lanes, and at the places left over the net forgets or waits, as two more
    inputs shut and open its gates.
    """

    state_names: tuple[str, ...]
    cell: type[nn.RNNBase]
    step_cost: int  # one more step of all lanes takes as long as so many lanes in it (measured on a CPU, one thread)

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
        """Learning: each layer runs once, all lanes side by side."""
        B, T, D = x.shape
        begin, L, last, place, between = lay_out(is_first, self.step_cost)
        row, keep = begin // T, is_first.flatten().index_select(0, begin).logical_not()[:, None, None]
        begun = [part.index_select(0, row) * keep for part in state]  # [S, layers, H]
        features, S, ends = x, len(begin), []
        rows = x.flatten(0, 1)
        if place is not None:
            rows = x.new_zeros(S * L, D).index_copy(0, place, rows)
        for layer, parameters in enumerate(self.rnn.all_weights):
            weights: list[Tensor] = [*parameters]  # [G * H, D], [G * H, H] and two biases; G gates
            inputs = rows.view(S, L, -1)
            if between is not None:
                inputs = torch.cat([inputs, between.to(x.dtype)], dim=-1)
                weights[0] = torch.cat([weights[0], self._between(weights[2])], dim=1)
            before = tuple(part[None, :, layer].contiguous() for part in begun)
            output, _, *after = self._run(inputs, before, weights)
            rows = output.flatten(0, 1)  # [S * L, H]
            features = (rows if place is None else rows.index_select(0, place)).view(B, T, -1)
            ends.append((features[:, -1], *(part[0].index_select(0, last) for part in after)))
        return features, tuple(torch.stack(parts, dim=1) for parts in zip(*ends, strict=True))

    def _step(self, x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
        """One step of one layer: x [S, D], state [S, H]."""
        raise NotImplementedError

    def _run(self, x: Tensor, state: State, weights: list[Tensor]) -> tuple[Tensor, ...]:
        """One layer over whole lanes: x [S, L, D], state [1, S, H]; features [S, L, H] and the state after them."""
        raise NotImplementedError

    def _between(self, bias: Tensor) -> Tensor:
        """Weights [G * H, 2] of two more inputs, given the first bias: forget all; wait (h is read before)."""
        raise NotImplementedError


class Lanes(NamedTuple):
    """How a window [B, T] lies in S lanes of one length."""

    begin: Tensor  # [S], the first step of each lane, as it is counted in the flat window
    length: int
    last: Tensor  # [B], the lane where each row ends
    place: Tensor | None = None  # [B * T], where each step lies in the flat lanes; None: just as in the window
    between: Tensor | None = None  # [S, length, 2], where no step lies: the lane forgets, as one will follow, or waits


def lay_out(is_first: Tensor, step_cost: int) -> Lanes:
    """The stretches of episodes one behind another, a place left free between two; what takes less of two lengths.

    A row begins a lane, with its carry, and ends one, so that its state after can be read there. Lanes are as long as
    the longest stretch, or so long that every row has one.
    """
    (B, T), N = is_first.shape, is_first.numel()
    begins = is_first.clone()
    begins[:, 0] = True
    begin = begins.flatten().nonzero().squeeze(1)  # of each stretch
    length = torch.diff(begin, append=begin.new_tensor([N]))
    S, longest = len(begin), int(length.max())
    if S * longest == N:
        return Lanes(begin, longest, torch.arange(S // B - 1, S, S // B, device=begin.device))

    def filled(L: int) -> list[int]:
        """Where each stretch begins in flat lanes of this length."""
        found, lane, used = [], -1, 0
        for first, steps in stretches:
            if first % T == 0 or used + steps > L:
                lane, used = lane + 1, 0
            found.append(lane * L + used)
            used += steps + 1
        return found

    stretches = list(zip(begin.tolist(), length.tolist(), strict=True))
    choices = [(L, filled(L)) for L in (longest, T - 1 + int(begins.sum(dim=1).max()))]
    L, found = min(choices, key=lambda choice: choice[0] * (choice[1][-1] // choice[0] + 1 + step_cost))
    start = begin.new_tensor(found)
    opens = start % L == 0  # the stretches that come first in a lane
    used = (start + length - 1)[opens.roll(-1)] % L + 1  # places of each lane, up to the last stretch in it
    place = torch.arange(N, device=begin.device) + (start - begin)[begins.flatten().cumsum(0) - 1]
    waits = torch.arange(L, device=begin.device) >= used[:, None]  # [S, L]
    forgets = waits.logical_not().flatten().index_fill(0, place, False).view_as(waits)
    return Lanes(begin[opens], L, place[T - 1 :: T] // L, place, torch.stack([forgets, waits], dim=-1))


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
    step_cost = 30

    def _step(self, x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
        return (torch.gru_cell(x, state[0], *weights),)

    def _run(self, x: Tensor, state: State, weights: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.gru(x, state[0], weights, True, 1, 0.0, True, False, True)

    def _between(self, bias: Tensor) -> Tensor:
        *_, new = bias.chunk(3)  # of the gates r, z, n
        shut = torch.full_like(new, SHUT)
        forgets = torch.cat([shut, shut, -new])  # h becomes tanh(b - b + 0 h)
        return torch.stack([forgets, torch.zeros_like(forgets)], dim=1)


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
    step_cost = 3

    def __init__(self, spec: Spec, in_size: int) -> None:
        super().__init__(spec, in_size)
        H = spec.hidden_size
        for layer in range(spec.num_layers):
            getattr(self.rnn, f"bias_ih_l{layer}").data[H : 2 * H] = spec.forget_bias

    def _step(self, x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
        return torch.lstm_cell(x, state, *weights)

    def _run(self, x: Tensor, state: State, weights: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.lstm(x, state, weights, True, 1, 0.0, True, False, True)

    def _between(self, bias: Tensor) -> Tensor:
        of_gate = bias.new_tensor([[SHUT, SHUT], [SHUT, -SHUT], [0, 0], [0, 0]])  # i, f, g, o; no c, no h
        return of_gate.repeat_interleave(self.spec.hidden_size, dim=0)

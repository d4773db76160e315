"""The working memory of StrategicMemory: K slots, what is put into them, and what is recalled from them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slm_lab.agent.memory.strategic.clock import (
    AGE,
    CLOCK,
    EVENT_AGE,
    PEAKS,
    SPAN,
    WAVES,
    clock_features,
    clocks,
    decays,
    row_of,
)
from slm_lab.agent.memory.strategic.entry import Entry
from slm_lab.agent.memory.strategic.retention import Retention
from slm_lab.agent.net.core.base import Core, CoreOut, take
from slm_lab.agent.net.layers import Layers
from slm_lab.lib.types import Tree

EVENT = 2.0  # by how much sharper than retention the clock of events tells entries apart
NO_EVENT = 0.01  # what ticks less is no event: ten thousand of it must come to nothing
LOW = -1e3  # below any ρ
ASKED = ("h", "query")  # of an entry, while it is the newest: what it asks with; slots don't hold them
UNKNOWN = -2  # in a trace: no decision was taken at this step


class Entries(NamedTuple):
    """What a window's steps were made into, and what was held before it: N entries, the first `before` of them held."""

    data: dict[str, Tensor]  # {..: [B, N, ...]}: h, key, value, query, worth, decay, count, time and (as held) noise, u
    before: int
    kept: Tensor  # [B, T, K] which of them were held at each step, -1: empty slot
    step: Tensor  # [B, N] of the episode, of what was acted in this window; -1: held before, or after its end


class StrategicCore(Core):
    """K slots for the steps of an episode that are worth keeping, read by attention.

    Each step is written as an entry `h = f(u)` with key, value, query and a log-retention ρ (`worth`); `Retention`
    decides which entries stay. Recall: `a = softmax over kept j of (softplus(q·k_j/√d) + ρ_j + age terms)`,
    `m = Σ a_j v_j`, features `tanh(W[h; m])`. ρ gets its gradient from `Hindsight`, and from what asks for events,
    which it makes (`_events`). One step costs O(K), however long the episode.

    The carry: the slots (as embedded when written, and the inputs `u` that they were made of), the last inputs, and of
    what isn't held the step and the events so far (`time`). Which entries were kept is chance of the world once it has
    been acted: learning reads it from `trace` [B, T, K] (`recall_step` as shown when acting) in the carry, embeds all
    entries anew, and takes no decision; slots filled before the window are embedded again from their inputs, so credit
    reaches them, but not the steps whose entries had been dropped by then, nor the encoder of those observations.

    Source: ours; retention is the weighted reservoir of Efraimidis & Spirakis 2006 with learned weights. See
    docs/strategic.md.
    """

    ages: Tensor  # [steps, AGE] features of ages in whole steps

    def __init__(self, spec: Any, entry: Entry, in_size: int) -> None:
        super().__init__()
        self.spec, self.entry = spec, entry
        self.retention = Retention(spec.rule, spec.slots)
        self.slots, self.heads, self.size, self.persist = spec.slots, spec.heads, spec.size, spec.persist
        D, A = in_size + CLOCK, spec.heads * spec.size  # of the inputs with their clock; of what all heads read
        self.input_size, self.breadth = D, spec.slots
        self.events_teach = 0.0  # how much of what asks for events reaches ρ: as much as `Hindsight` teaches retention
        self.address = nn.Linear(entry.out_size + D, 3 * A)  # key, value, query
        self.worth = _scalar(D, spec.hidden_size).requires_grad_(spec.taught)  # else all stay worth the same
        self.decay = _scalar(D, spec.hidden_size, bias=_softplus_inverse(spec.decay_init)) if spec.decays else None
        self.clocks = ["count"] * spec.recall_age + ["time"] * spec.recall_events  # by which ages are told
        self.read = {"key", "value", "worth", "count", *self.clocks}  # of what is held
        self.age_sizes = [AGE] * spec.recall_age + [EVENT_AGE] * spec.recall_events  # features of each clock's ages
        self.age = nn.Linear(entry.out_size, spec.heads * sum(self.age_sizes)) if self.age_sizes else None
        if self.age is not None:
            nn.init.zeros_(self.age.weight)
            nn.init.zeros_(self.age.bias)
        self.span = max(SPAN, -(-2 * spec.slots // len(WAVES)) * len(WAVES))
        steps = self.span + len(WAVES)
        ages = torch.cat([clocks(steps), torch.arange(steps)[:, None].clamp(max=2 * spec.slots)], dim=1)
        self.register_buffer("ages", ages, persistent=False)
        self.mix = nn.Linear(entry.out_size + A, spec.hidden_size)
        self.out_size = spec.hidden_size

    # --- the carry ---

    def initial(self, B: int) -> Tree:
        like = self.address.weight
        u = like.new_zeros(B, self.slots, self.entry.window, self.input_size)
        with torch.no_grad():
            written = self._embed(u)
        empty = {name: like.new_zeros(B, self.slots) for name in ("noise", "time")}
        return {
            "held": {
                **{name: leaf for name, leaf in written.items() if name not in ASKED},
                **empty,
                "u": u,
                "count": torch.full((B, self.slots), -1, device=like.device),
            },
            "recent": like.new_zeros(B, self.entry.window - 1, self.input_size),
            "episode": torch.full((B,), -1, device=like.device),
            "clock": torch.zeros(B, dtype=torch.int64, device=like.device),
            "count": torch.zeros(B, dtype=torch.int64, device=like.device),
            "time": like.new_zeros(B),
        }

    def forward(
        self, x: Tensor, carry: Tree, is_first: Tensor, at: Tensor | None = None, rng: torch.Generator | None = None
    ) -> CoreOut:
        if "trace" in carry:
            return self._learn(x, carry, is_first, at)
        outs: list[CoreOut] = []
        for t in range(x.shape[1]):
            outs.append(self._act(x[:, t : t + 1], carry, is_first[:, t : t + 1], rng))
            carry = outs[-1].carry
        if len(outs) == 1 and at is None:  # acting
            return outs[0]
        extras = {name: take(torch.cat([out.extras[name] for out in outs], dim=1), at) for name in outs[0].extras}
        return CoreOut(take(torch.cat([out.features for out in outs], dim=1), at), carry, extras)

    def _act(self, x: Tensor, carry: Tree, first: Tensor, rng: torch.Generator | None) -> CoreOut:
        """One step [B, 1, ...]: it is put into a slot, or not, and what is held then is recalled."""
        carry = self._begun(carry, first.squeeze(1))
        new, after, clock = self._written(x, carry, rng)
        held, filled = carry["held"], carry["held"]["count"] >= 0
        new["time"] = self._events(new["worth"], _best(held["worth"], filled)[:, None], carry["time"])
        after["time"] = new["time"].squeeze(1)
        held = _put(held, self.retention.slot(held, filled, new), new)
        features, extras = self._read(new, {name: held[name].unsqueeze(1) for name in self.read})
        return CoreOut(features, {"held": held, **after}, self._shown(extras, new["count"], clock))

    def _learn(self, x: Tensor, carry: Tree, is_first: Tensor, at: Tensor | None) -> CoreOut:
        """A window [B, T, ...] that was acted: what was kept at each step is known, so all entries are made at once."""
        B, T, _ = x.shape
        if bool(is_first[:, 1:].any()):
            raise ValueError("an episode begins amid a window; StrategicMemory learns from windows of one episode each")
        carry = self._begun(carry, is_first[:, 0])
        data, _, clock = self._written(x, carry, None)
        held, before = carry["held"], 0
        if bool((held["count"] >= 0).any()):
            held, before = {**held, **self._embed(held["u"])}, self.slots
            data = {name: torch.cat([held[name], leaf], dim=1) for name, leaf in data.items() if name in held}
        index = self._kept(data, before, carry["trace"], T)  # [B, T, K] places among the N entries, -1: empty
        data["time"] = self._events_of(data, before, index, carry)
        steps = torch.arange(T, device=x.device).expand(B, T) if at is None else at
        features, extras = self.recall(data, before + steps, take(index, at))
        shown = self._shown(extras, take(data["count"][:, before:], at), take(clock, at))
        acted = torch.arange(T, device=x.device) < _length(carry["trace"])[:, None]  # [B, T]
        step = F.pad(torch.where(acted, clock, -1), (before, 0), value=-1)
        return CoreOut(features, {}, shown, {}, Entries(data, before, index, step))

    def _begun(self, carry: Tree, first: Tensor) -> Tree:
        """The carry where episodes begin, first [B]: their clock at 0 and, unless they persist, slots empty too."""
        if not bool(first.any()):
            return carry
        begun = {**carry, "episode": carry["episode"] + first, "clock": carry["clock"].masked_fill(first, 0)}
        if not self.persist:
            empty = carry["held"]["count"].masked_fill(first[:, None], -1)
            begun |= {"held": {**carry["held"], "count": empty}, "count": begun["clock"]}
        else:  # only differences are read; a sum over many episodes would come to swallow what is added to it
            past = torch.where(first, carry["time"], 0.0)
            begun["held"] = {**carry["held"], "time": carry["held"]["time"] - past[:, None]}
        begun["time"] = carry["time"].masked_fill(first, 0.0)
        return begun

    # --- what is written ---

    def _written(self, x: Tensor, carry: Tree, rng: torch.Generator | None) -> tuple[Tree, Tree, Tensor]:
        """The entries of a window's steps [B, T, ...], the carry without the slots, the steps' clock [B, T]."""
        step = torch.arange(x.shape[1], device=x.device)
        clock = carry["clock"][:, None] + step  # since the episode began
        count = carry["count"][:, None] + step if self.persist else clock  # since the slots were empty
        u, recent = self._inputs(x, clock, carry["recent"])  # [B, T, window, D]
        noise = self.retention.noise(count, carry["episode"], rng)
        new = {**self._embed(u), "u": u, "noise": noise, "count": count}
        after = {"recent": recent, "episode": carry["episode"], "clock": clock[:, -1] + 1}
        return new, {**after, "count": count[:, -1] + 1 if self.persist else after["clock"]}, clock

    def _inputs(self, x: Tensor, clock: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
        """The last inputs of each step [B, T, window, D], zeros before its episode began; and those to carry on."""
        window = self.entry.window
        told = clock_features(clock)
        x = torch.cat([x, told if self.spec.clock else torch.zeros_like(told)], dim=-1)
        if window == 1:
            return x.unsqueeze(2), recent
        whole = torch.cat([recent, x], dim=1)  # [B, window-1 + T, D]
        back = torch.arange(window - 1, -1, -1, device=x.device)  # steps back, oldest first
        u = whole.unfold(1, window, 1).transpose(2, 3)  # [B, T, window, D]
        return u * (clock[:, :, None] >= back)[..., None], whole[:, -(window - 1) :]

    def _embed(self, u: Tensor) -> dict[str, Tensor]:
        """Entries [B, N, ...] of their inputs [B, N, window, D]."""
        B, N = u.shape[:2]
        h = self.entry.forward(u.flatten(0, 1)).view(B, N, -1)
        now = u[:, :, -1]
        address = self.address.forward(torch.cat([h, now], dim=-1))
        key, value, query = address.view(B, N, 3, self.heads, self.size).unbind(2)
        found = {"h": h, "key": key, "value": value, "query": query, "worth": self.worth.forward(now).squeeze(-1)}
        if self.decay is not None:
            found["decay"] = F.softplus(self.decay.forward(now).squeeze(-1))
        return found

    def _events(self, worth: Tensor, best: Tensor, time: Tensor) -> Tensor:
        """Events so far [B, T] of entries worth ρ [B, T], where ρ `best` [B, T] was held and `time` [B] had passed.

        A clock that ticks as much as a step is worth keeping beside the best that is held, `exp(2 (ρ − max ρ)) − 0.01`
        or nothing: many that are worth little should come to nothing, however long the episode. Beside the best so far,
        held or not, it would be one more thing that is remembered, by no slot.
        """
        if "time" not in self.clocks:
            return torch.zeros_like(worth)
        tick = (torch.exp(EVENT * (worth - torch.maximum(worth, best).detach())) - NO_EVENT).clamp(min=0)
        events = time[:, None] + tick.cumsum(dim=1)
        return torch.lerp(events.detach(), events, self.events_teach)

    def _events_of(self, data: Tree, before: int, kept: Tensor, carry: Tree) -> Tensor:
        """Events [B, N] of a window's entries and of those held before it; kept [B, T, K] at each step."""
        if "time" not in self.clocks:
            return torch.zeros_like(data["worth"])
        held, worth = carry["held"], data["worth"].detach()
        best = _best(_rows(worth, kept.clamp(min=0)), kept >= 0)  # [B, T]
        first = _best(worth[:, :before] if before else held["worth"], held["count"] >= 0)
        best = torch.cat([first[:, None], best[:, :-1]], dim=1)
        events = self._events(data["worth"][:, before:], best, carry["time"])
        return torch.cat([held["time"], events], dim=1) if before else events

    # --- what is kept and recalled ---

    def _kept(self, data: Tree, before: int, trace: Tensor, T: int) -> Tensor:
        """The places [B, T, K] of what was kept at each step, by its counts `trace`; after a window's end, would be."""
        B = len(trace)
        index = torch.arange(self.slots, device=trace.device).expand(B, self.slots)
        held = data["count"][:, : self.slots] >= 0
        index = torch.where(held, index, -1) if before else torch.full_like(index, -1)
        begin = data["count"][:, before, None, None]  # what was written before the window stays in its slot
        places = torch.where(trace >= begin, before + trace - begin, index[:, None])
        places = torch.where(trace < 0, -1, places)  # [B, T or T - 1, K]
        end = _length(trace)
        last = take(places, (end - 1).clamp(min=0)[:, None]).squeeze(1)
        last = torch.where((end > 0)[:, None], last, index)
        new = (before + end).clamp(max=data["count"].shape[1] - 1)[:, None]
        named = self.retention.reads & data.keys()
        slot = self.retention.slot(
            {name: data[name].gather(1, last.clamp(min=0)) for name in named},
            last >= 0,
            {name: data[name].gather(1, new) for name in named},
        )
        after = torch.where(slot, new, last)
        places = torch.cat([places, after[:, None]], dim=1)[:, :T]
        step = torch.arange(places.shape[1], device=places.device)
        return torch.where((step >= end[:, None])[..., None], after[:, None], places)

    def recall(self, data: Tree, now: Tensor, index: Tensor) -> tuple[Tensor, Tree]:
        """Features [B, Q, F] of the entries `now` [B, Q] reading the entries `index` [B, Q, K], and what to show."""
        ask = {name: take(data[name], now) for name in (*ASKED, *self.clocks)}
        held = {name: _rows(data[name], index.clamp(min=0)) for name in self.read}
        return self._read(ask, {**held, "count": torch.where(index >= 0, held["count"], -1)})

    def _read(self, ask: Tree, held: Tree) -> tuple[Tensor, Tree]:
        """Entries [B, Q, ...] reading the slots [B, Q, K, ...]; those of count -1 are empty."""
        # a row times a matrix: einsum has it the other way round, which takes four times as long for a single step
        key = held["key"].permute(0, 1, 3, 4, 2)  # [B, Q, H, d, K]
        score = (ask["query"].unsqueeze(3) @ key).squeeze(3)
        ages = {name: ask[name].unsqueeze(-1) - held[name] for name in self.clocks}
        logits = self._logits(score, held["worth"], ask["h"], ages)
        empty = (held["count"] < 0).unsqueeze(2)
        weight = torch.softmax(logits.masked_fill(empty, -torch.inf), dim=-1)
        weight = weight.masked_fill(empty, 0.0)  # nothing held: nothing recalled
        memory = (weight.unsqueeze(3) @ held["value"].transpose(2, 3)).squeeze(3)  # [B, Q, H, d]
        shown = {
            "recall_step": held["count"],
            "recall_weight": (weight.squeeze(2) if self.heads == 1 else weight.mean(dim=2)).detach(),
            "recall_worth": held["worth"].detach(),
        }
        return torch.tanh(self.mix.forward(torch.cat([ask["h"], memory.flatten(2)], dim=-1))), shown

    def _shown(self, extras: Tree, count: Tensor, clock: Tensor) -> Tree:
        """With the count [B, Q] at which the episode began: of what is held, the rest may be of earlier ones."""
        return {**extras, "recall_begin": count - clock} if self.persist else extras

    def match_all(self, data: Tree, now: Tensor) -> Tensor:
        """Attention's logits [B, M, H, N] of all entries, as if nothing had been dropped.

        For learning only (M reads of N entries): the policy never sees it.
        """
        score = torch.einsum("bmhd,bnhd->bmhn", take(data["query"], now), data["key"])
        ages = {name: take(data[name], now).unsqueeze(-1) - data[name].unsqueeze(1) for name in self.clocks}
        return self._logits(score, data["worth"].unsqueeze(1), take(data["h"], now), ages)

    def recall_all(self, data: Tree, now: Tensor, logits: Tensor) -> Tensor:
        """h and memory [B, M, F + H·d] of attention with these logits [B, M, H, N]."""
        memory = torch.einsum("bmhn,bnhd->bmhd", torch.softmax(logits, dim=-1), data["value"])
        return torch.cat([take(data["h"], now), memory.flatten(2)], dim=-1)

    def _logits(self, score: Tensor, worth: Tensor, h: Tensor, ages: dict[str, Tensor]) -> Tensor:
        """`softplus(q·k/√d) + ρ + w(h)·ψ(age)` [B, Q, H, S].

        score [B, Q, H, S], worth [B, Q or 1, S], h [B, Q, F], each of ages [B, Q, S]. ρ gets no gradient: it
        would drift with what V wants. Content can only add to it: with a sign of its own it learned to hide entries.
        """
        logits = F.softplus(score / math.sqrt(self.size)) + worth.detach().unsqueeze(2)
        if self.age is not None:
            asked = self.age.forward(h).view(*h.shape[:2], self.heads, -1)
            for part, (clock, age) in zip(torch.split(asked, self.age_sizes, dim=-1), ages.items(), strict=True):
                logits = logits + part @ self._age_features(clock, age.clamp(min=0))
        return logits

    def _age_features(self, clock: str, age: Tensor) -> Tensor:
        """ψ: an age [B, Q, S], 0 or more, as bounded features [B, Q, AGE or EVENT_AGE, S].

        Of so many events ago: `(a/τ) exp(1 − a/τ)` has its peak there (the kernels of de Vries & Principe 1992).
        """
        if clock == "count":
            return F.embedding(row_of(age, self.span), self.ages).transpose(2, 3)
        faded, events = decays(age), age.unsqueeze(2)
        peaked = faded * events * PEAKS.to(age.device)[:, None]
        return torch.cat([faded, peaked, events.clamp(max=2 * self.slots)], dim=2)


def _scalar(in_size: int, hidden: int, bias: float = 0.0) -> Layers:
    """A number for each input, the same for all at first: entries begin equal."""
    last = nn.Linear(hidden, 1)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, bias)
    return Layers(nn.Linear(in_size, hidden), nn.Tanh(), last)


def _softplus_inverse(y: float) -> float:
    return math.log(math.expm1(y))


def _best(worth: Tensor, held: Tensor) -> Tensor:
    """The largest ρ [...] of what is held, of slots [..., K]."""
    return worth.masked_fill(~held, LOW).amax(dim=-1)


def _length(trace: Tensor) -> Tensor:
    """Steps [B] of each window that were acted."""
    return (trace[..., 0] != UNKNOWN).sum(dim=1)


def _put(held: Tree, slot: Tensor, new: Tree) -> Tree:
    """The slots {..: [B, K, ...]} with the entry {..: [B, 1, ...]} in those marked [B, K]."""
    row, at = slot.nonzero(as_tuple=True)
    put = {}
    for name, leaf in held.items():
        if leaf.dim() == 2:
            put[name] = torch.where(slot, new[name], leaf)
        else:  # a copy and a few rows written: `where` goes through all numbers, at a tenth of the speed
            put[name] = leaf.index_put((row, at), new[name].squeeze(1).index_select(0, row))
    return put


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Entries `index` [B, Q, K] of x [B, N, ...]: [B, Q, K, ...]."""
    B, N = x.shape[:2]
    flat = index + N * torch.arange(B, device=x.device)[:, None, None]
    return x.flatten(0, 1).index_select(0, flat.flatten()).view(*index.shape, *x.shape[2:])

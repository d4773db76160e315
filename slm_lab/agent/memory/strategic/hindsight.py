"""What teaches StrategicMemory beside the policy gradient: a critic that sees the whole episode."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from slm_lab.agent.auxiliary.base import Auxiliary, AuxiliaryContext
from slm_lab.agent.memory.strategic.core import Entries, StrategicCore
from slm_lab.agent.memory.strategic.usefulness import RATE, promising, use_of
from slm_lab.agent.net.core.base import take
from slm_lab.agent.net.distribution import Categorical
from slm_lab.agent.net.encode import vector, vector_size
from slm_lab.agent.net.net import Net, NetOut
from slm_lab.lib.reduce import Losses, Metrics, masked_mean, masked_rms
from slm_lab.lib.returns import explained_variance, slope_of
from slm_lab.lib.tree import tree_leaves, tree_map
from slm_lab.lib.types import Batch, Tree

NAME = "hindsight"
PAST_BYTES = 2**24  # most of a batch that is kept for replay
DRAWS = 4  # of actions that can't be counted, for their mean
EVEN = 0.1  # of what teaches retention, evenly to all entries: without any that is of use they are worth the same
APART = 0.25  # nats from even at which ρ tells entries apart well enough to swap those that are worth the same
SURE = 0.25  # explained variance from which on a critic has shown that it can explain
ENOUGH = 100  # steps of which that isn't luck; of two episodes' a critic of noise explained 0.3 once in 33 batches
FEWEST = 2  # windows that are worth keeping
AT_ONCE = 2**20  # pairs of a surprising step and an entry that are looked at together: some 200 MB
LONGEST = 2**20  # steps of an episode that promise knows apart; later ones have none


class Hindsight(Auxiliary):
    """Credit for what was kept, for what was dropped, and for what was done at surprising steps.

    At M steps of each episode, half of them those of the largest one-step TD errors, half drawn in proportion (M: how
    many steps there are that surprise, times `queries`):

    - *critic*: attention over all entries so far, evicted ones included, and the advantage of the action taken,
      `Q(h_j, m_j)[a_j] − Σ_b π(b) Q(h_j, m_j)[b] → δ_j` in units of their rms. It learns from a policy that acts by
      chance, and since what no action caused explains nothing, it doesn't learn the noise of the value function. Where
      actions can't be counted, the mean is that of four drawn from the policy.
      Entries are looked up by the key of another episode's entry of the same step, by a chance (`swap`): attention
      must find a cue whatever it says. Else "it isn't there" comes to mean the one thing that the cue can say. Those
      that differ in ρ are rarely swapped, and none before ρ or the critic knows anything: the key of what is no cue, in
      a cue's place, would only mislead. The policy, too, is taught (below) by a Q that looks entries up so.
    - *usefulness*: cross-entropy from what each entry does for the critic, mean over the steps, and a little of all
      entries alike, to `softmax_i ρ_i` over the episode so far: its fixed point, exp(ρ_i) in proportion to the use that
      i will be, is the right weight of a reservoir. The use of entry i is by how much the critic's error would grow if
      what another episode has of the same step stood in its place (nothing, where that has none), on episodes that the
      critic has not learned from yet: one that is looked at and says nothing, or the same in all episodes, or what was
      learned by heart, is of none. As far as the gate below is shut, what may come to be of use is told too (*promise*,
      see `_promise`): in a long episode nothing is looked at enough to be of use.
    - *prior*: cross-entropy from the critic's attention times exp(ρ) to itself: of what it looks at, it is led to what
      retention prefers, which else it would as soon leave. As far as attention lies on what is worth less than the
      best, attention that is even over all entries is added first: to what isn't looked at it could not be led. The
      loss counts as far as retention prefers any: by how far softmax(ρ) is from even, in nats, at most 1 (where all
      steps are worth the same, ρ is noise). As far as it prefers none and the critic has never explained a quarter of
      the variance, attention is held even: noise can be learned by heart by any entry, and it came to rest on a few.
    - *decay*: the same for each step alone, to `softmax_i (ρ_i − λ_i·min(age, 2K))`, with ρ held still.
    - *gated mean-actor-critic*: `−Σ_a π(a) [Q(a) − Σ_b π(b) Q(b)]`, π as the policy sees it by its slots, times the
      *gate*: the explained variance of the critic (0 to 1) on episodes that it has not learned from yet, times how far
      the advantage bears it out (its slope on Q there, 0 to 1). A TD error has all of what V says wrongly of the next
      state, and what always is so is explained best; a λ-advantage has 1 − λ of what is wrong for one step, more of
      what lasts. That the steps are chosen by |δ| makes the slope too large where little is explained; explained
      variance holds the gate then. Each step counts as in the policy loss, which is a mean over all steps: M of T would
      else outweigh the rest. Discrete actions only.

    Errors are in units of their rms over the last batches: in units of one batch that holds no surprise, noise would
    count as much as mistakes do. All that teaches retention (usefulness, decay, and who reads the clock of events)
    counts as much as the batch surprises, by its mean square error beside the largest yet, and as far as the critic
    explains what it once could (`_trusted`): once a task is solved its errors are noise, and what it needs has been
    found.

    The critic and usefulness learn from windows of the last batches again (`replay`), so that few surprises are not
    learned by heart.

    Source: ours; mean actor-critic is Allen et al. 2017, arXiv 1709.00503.
    """

    def __init__(self, spec: Any, context: AuxiliaryContext, in_size: int) -> None:
        super().__init__(spec, context)
        space = context.world.action_space
        self.discrete = isinstance(space, spaces.Discrete)
        extra, out = (0, int(space.n)) if isinstance(space, spaces.Discrete) else (vector_size(space), 1)
        self.critic = nn.Sequential(
            nn.Linear(in_size + extra, spec.hidden_size), nn.Tanh(), nn.Linear(spec.hidden_size, out)
        )
        self.rng = torch.Generator().manual_seed(context.seed)
        self.part = next(iter(context.features))
        self.gate = 0.0
        self.explains = 0.0  # the most variance of a batch's errors that the critic has explained yet
        self.largest = 0.0  # mean square of a batch's errors yet
        self.square = 0.0  # of the errors, mean of the last batches
        self.promise = torch.zeros(0)  # [S] of the steps of an episode, mean of the last batches
        self.past: list[Tree] = []  # windows of the last batches

    def get_extra_state(self) -> Tree:
        past = {str(i): part for i, part in enumerate(self.past)}
        held = {"largest": self.largest, "square": self.square, "explains": self.explains}
        return {"rng": self.rng.get_state(), **held, "promise": self.promise, "past": past}

    def set_extra_state(self, state: Tree) -> None:
        self.rng.set_state(state["rng"].cpu())
        self.largest, self.square = float(state["largest"]), float(state["square"])
        self.explains = float(state["explains"])
        self.promise = state["promise"].cpu()
        self.past = list(state["past"].values())

    @torch.no_grad()
    def prepare(self, batch: Batch, net: Net) -> tuple[Batch, Metrics]:
        error = batch.extras["td_error"]  # [B, T]
        count = self._count(error, batch.mask)
        at, mask = surprising(error, batch.mask, count, self.rng)
        error = take(error, at)  # [B, M]
        square = float(masked_rms(error, mask)) ** 2
        self.square = self.square + RATE * (square - self.square) if self.square else square
        self.largest = max(self.largest, square)
        error = error / self.square**0.5
        share = min(1.0, at.numel() / int(batch.mask.sum()))  # of all steps
        notes = {"at": at, "mask": mask, "action": take(batch.action, at), "error": error}
        notes["share"] = torch.full_like(error[:, :1], share)  # [B, 1]
        out = net.features(batch.obs, batch.carry, batch.is_first, ("policy",), go_on=False, at=at)
        policy = net.read("policy", out.features)
        if isinstance(policy, Categorical):
            notes["policy"] = policy.log_probs.exp()  # [B, M, A]
        else:
            notes["drawn"] = torch.stack([policy.sample(self.rng) for _ in range(DRAWS)], dim=2)  # [B, M, DRAWS, A]
        judged, notes["use"], notes["promise"] = self._used(notes, out.inner[self.part], _core(net, self.part))
        explained = float(explained_variance(judged[mask], notes["error"][mask]).nan_to_num(0.0))
        self._note(explained, int(mask.sum()))
        weight = square / self.largest * self._trusted(explained)
        notes["weight"] = torch.full_like(notes["share"], weight)
        _core(net, self.part).events_teach = weight if self.spec.usefulness_coef else 0.0
        batch = batch.replace(notes={**batch.notes, NAME: notes})
        self._keep(batch)
        borne_out = 1.0
        if "raw_advantage" in batch.extras:  # REINFORCE knows no values, and none that are wrong
            came = take(batch.extras["raw_advantage"], at) / self.square**0.5
            borne_out = min(1.0, max(0.0, slope_of(came[mask], judged[mask])))
        self.gate = min(1.0, max(0.0, explained)) * borne_out
        shown = {"hindsight_explained": explained, "hindsight_borne_out": borne_out}
        return batch, shown | {"hindsight_weight": weight}

    def _note(self, explained: float, steps: int) -> None:
        """Take in what the critic explained of a batch's surprising steps; of few it may be by luck."""
        if steps >= ENOUGH:
            self.explains = max(self.explains, explained)

    def _trusted(self, explained: float) -> float:
        """How far, 0 to 1, what the critic now says of use is more than noise: beside the most it has explained yet."""
        sure = self._sure()
        return 1 - sure + sure * min(1.0, max(0.0, explained) / max(self.explains, 1e-8))

    def _sure(self) -> float:
        """How surely, 0 to 1, the critic has ever explained anything."""
        return min(1.0, self.explains / SURE)

    def _count(self, error: Tensor, mask: Tensor) -> int:
        """How many steps of an episode are surprising: their participation ratio `(Σδ²)² / Σδ⁴`, mean of episodes."""
        square = torch.where(mask, error, 0.0).double().square()
        ratio = square.sum(dim=1).square() / square.square().sum(dim=1).clamp(min=1e-300)
        return int((self.spec.queries * ratio.mean()).round().clamp(self.spec.queries, self.spec.max_queries))

    def losses(self, batch: Batch, out: NetOut, net: Net) -> Losses:
        notes, entries, core = batch.notes[NAME], out.inner[self.part], _core(net, self.part)
        terms, value = self._teach(notes, entries, core)
        spec, mask, data = self.spec, notes["mask"], entries.data
        if self.past:
            terms["hindsight_replay_loss"] = self._replayed(len(mask), net).expand_as(mask)
        gate = self.gate if spec.actor_gate else 1.0
        if spec.actor_coef and gate and self.discrete:
            features, _ = core.recall(data, entries.before + notes["at"], take(entries.kept, notes["at"]))
            policy = net.read("policy", {**out.features, net.part_of["policy"]: features})
            assert isinstance(policy, Categorical)
            gain = notes["share"] * _mean_actor_critic(policy, value.detach())
            terms["actor_loss"] = spec.actor_coef * gate * gain
        return Losses(terms, {"hindsight_gate": self.gate}, mask=mask)

    def _keep(self, batch: Batch) -> None:
        """Some of the windows for replay: as many as fit; none where so few do that entries have no others."""
        if not self.spec.replay:
            return
        part = {"obs": batch.obs, "is_first": batch.is_first, "carry": batch.carry, "notes": batch.notes[NAME]}
        size = sum(leaf[0].nbytes for _, leaf in tree_leaves(part))
        fit = PAST_BYTES // size
        if fit < FEWEST:
            return
        rows = torch.randperm(len(batch.mask), generator=self.rng)[:fit]
        self.past.append(tree_map(lambda x: x[rows.to(x.device)], part))
        del self.past[: -self.spec.replay]

    def _replayed(self, count: int, net: Net) -> Tensor:
        """What as many windows of one of the last batches teach."""
        held = self.past[int(torch.randint(len(self.past), (1,), generator=self.rng))]
        rows = torch.randperm(len(held["is_first"]), generator=self.rng)[:count]
        device = next(self.parameters()).device  # after a resume they are where they were saved from
        part = tree_map(lambda x: x[rows.to(x.device)].to(device), held)
        out = net.features(
            part["obs"], part["carry"], part["is_first"], ("policy",), go_on=False, at=part["notes"]["at"][:, :1]
        )
        terms, _ = self._teach(part["notes"], out.inner[self.part], _core(net, self.part))
        return sum(
            (masked_mean(term, part["notes"]["mask"]) for term in terms.values()), torch.zeros((), device=device)
        )

    def _teach(self, notes: Tree, entries: Entries, core: StrategicCore) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of critic, prior, usefulness and decay [B, M], and the values behind them [B, M, A]."""
        logits, read = self._looked(notes, entries._replace(data=self._swapped(entries)), core)
        value = self._valued(notes, read)
        judged = self._of(value, notes["action"])  # [B, M]
        terms = {"hindsight_loss": self.spec.hindsight_coef * (judged - notes["error"]).square()}
        if self.spec.prior_coef:
            terms["prior_loss"] = self._prior(logits, entries.data["worth"], _seen(notes["at"], entries))
        if self.spec.usefulness_coef:
            terms |= self._usefulness(notes, entries, core)
        return terms, value

    def _prior(self, logits: Tensor, worth: Tensor, valid: Tensor) -> Tensor:
        """What leads attention [B, M], given its logits [B, M, H, N], ρ [B, N], and which entries there are [B, M, N].

        The prior has a mass of less than 1 where nothing is known, and so counts for less.
        """
        valid = valid.unsqueeze(2)
        # ρ is a part of the logits too: once more, or the best that q·k could do would be to say nothing
        looked, even = torch.softmax(logits.detach(), dim=-1), _evenly(valid)  # [B, M, H or 1, N]
        worth = worth.detach()[:, None, None].masked_fill(~valid, -torch.inf)
        liked = (worth - worth.amax(dim=-1, keepdim=True)).exp()  # 1: what retention prefers to all
        missed = 1 - (looked * liked).sum(dim=-1, keepdim=True).clamp(max=1.0)  # [B, M, H, 1]
        led = torch.softmax((looked + missed * even).log() + worth, dim=-1)
        known = _preference(worth, valid).unsqueeze(-1)  # [B, M, 1, 1]
        prior = known * led + (1 - known) * (1 - self._sure()) * even
        loss: Tensor = self.spec.prior_coef * _cross_entropy(prior, logits, valid).mean(dim=2)
        return loss

    def _usefulness(self, notes: Tree, entries: Entries, core: StrategicCore) -> dict[str, Tensor]:
        """What teaches ρ and λ, each [B, M]."""
        mask, data, now = notes["mask"], entries.data, entries.before + notes["at"]
        valid = _seen(notes["at"], entries)  # [B, M, N]
        coef = self.spec.usefulness_coef * notes["weight"]  # [B, 1]
        # a batch's notes have room for K entries held before; its minibatches may have none
        target, promise = (notes[name][..., -valid.shape[2] :] for name in ("use", "promise"))  # [B, M, N], [B, N]
        might = self.spec.promise_coef * (1 - self.gate) * promise
        whole = (target * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)  # [B, N]
        among = (valid & mask[..., None]).any(dim=1)
        whole = whole.clamp(min=0) + EVEN * _evenly(among) + might * among
        terms = {"usefulness_loss": (coef * _cross_entropy(whole, data["worth"], among)[:, None]).expand_as(mask)}
        if "decay" in data:
            age = take(data["count"], now)[..., None] - data["count"][:, None]
            held = data["worth"].detach()[:, None] - data["decay"][:, None] * age.clamp(0, 2 * core.slots)
            each = target.clamp(min=0) + EVEN * _evenly(valid) + might[:, None] * valid  # [B, M, N]
            terms["decay_loss"] = coef * _cross_entropy(each, held, valid)
        return terms

    def _used(self, notes: Tree, entries: Entries, core: StrategicCore) -> tuple[Tensor, Tensor, Tensor]:
        """Q of the actions taken [B, M]; use [B, M, K + T] and promise [B, K + T].

        Of so many windows at a time that memory doesn't grow with B. What was held before the window has no promise,
        nor another's entry to stand in its place: nothing does.
        """
        (B, M), left, other = notes["at"].shape, core.slots - entries.before, self._others(entries)
        rows = max(1, AT_ONCE // (M * entries.step.shape[1]))
        found = []
        for i in range(0, B, rows):
            some = partial(tree_map, itemgetter(slice(i, i + rows)))
            part = Entries(some(entries.data), entries.before, some(entries.kept), some(entries.step))
            found.append(self._used_of(some(notes), part, some(other), core))
        judged, use = (torch.cat(x) for x in zip(*found, strict=True))
        credit = self._credit(notes, notes["error"] - judged, entries)
        promise = self._promise(credit, entries.data["value"].detach().flatten(2), entries.step)
        return judged, F.pad(use, (left, 0)), F.pad(promise, (left, 0))

    def _used_of(self, notes: Tree, entries: Entries, other: Tree, core: StrategicCore) -> tuple[Tensor, Tensor]:
        """Q of the actions taken [B, M], and use [B, M, N], if `other` stood in each entry's place."""
        data, now = entries.data, entries.before + notes["at"]
        logits, read = self._looked(notes, entries, core)
        with torch.enable_grad():
            judged = self._of(self._valued(notes, read.requires_grad_()), notes["action"])
            (slope,) = torch.autograd.grad(judged.sum(), read)
        there = _seen(notes["at"], entries) & (other["count"] >= 0)[:, None]
        placed = {**data, **other, "count": data["count"]}  # other's is -1 where its episode has ended
        others = core.match_all(placed, now).masked_fill(~there.unsqueeze(2), -torch.inf)
        slope = slope[..., -data["value"][0, 0].numel() :].view(*judged.shape, *data["value"].shape[2:])  # [B, M, H, d]
        judged = judged.detach()
        use = use_of(notes["error"] - judged, slope, read, (logits, data["value"]), (others, other["value"]))
        return judged, use

    def _credit(self, notes: Tree, missed: Tensor, entries: Entries) -> Tensor:
        """`Σ_m missed_m a_m` [B, N, A] over the steps from each entry on: how what was done thereafter turned out,
        beyond what is explained; a is one-hot, or 1 and the action in units of each of its numbers."""
        if self.discrete:
            taken = F.one_hot(notes["action"].long(), notes["policy"].shape[-1]).to(missed)
        else:
            taken = F.pad(self._action_features(notes["action"]), (1, 0), value=1.0)
            taken = taken / taken[notes["mask"]].square().mean(dim=0).sqrt().clamp(min=1e-8)
        seen = _seen(notes["at"], entries) & notes["mask"][..., None]  # [B, M, N]
        return torch.einsum("bma,bmn->bna", missed[..., None] * taken, seen.to(missed))

    def _promise(self, credit: Tensor, value: Tensor, step: Tensor) -> Tensor:
        """How surely what an entry [B, N] says goes with how actions turned out after it; 0 of what says nothing.

        Use needs attention on an entry and a critic that has found what it means. Before that the covariance of credit
        and value tells as much: it is what would teach a critic, linear in v, that looks at this entry alone. Of a cue
        `G = (c − E c) ⊗ (v − E v)` is alike in all episodes, of all else it is chance. What counts is `|E G|²` of the
        step, in units of the mean |G|² of all steps, at most 1; of one batch it is mostly chance, so it is the mean of
        the last ones. credit c [B, N, A] is `_credit`, value v [B, N, D], step [B, N] of the episode, or -1.
        """
        there = (step >= 0) & (step < LONGEST)
        found, steps = (x.cpu() for x in promising(credit, value, there, step))
        known = int(torch.where(there, step, 0).max()) + 1
        self.promise = F.pad(self.promise, (0, max(0, known - len(self.promise))))
        self.promise[steps] += RATE * (found.clamp(-1.0, 1.0) - self.promise[steps])
        return torch.where(there, self.promise.to(value)[torch.where(there, step, 0)].clamp(min=0.0), 0.0)

    def _others(self, entries: Entries) -> Tree:
        """For each entry what another window has of the same step of its episode; count -1: nothing."""
        data, step = entries.data, entries.step
        B = len(step)
        by = int(torch.randint(1, B, (1,), generator=self.rng)) if B > 1 else 0
        found = {name: data[name].roll(by, dims=0) for name in ("key", "value", "worth", "count")}
        there = (step >= 0) & (step.roll(by, dims=0) == step) & (by > 0)
        return {**found, "count": torch.where(there, found["count"], -1)}

    def _swapped(self, entries: Entries) -> Tree:
        """The entries, each with key and worth of the other one, by a chance of `swap · exp(−|ρ − ρ'|)`.

        Not before anything is known: where ρ hardly tells entries apart, and the critic has never explained anything,
        that two of them are worth the same says nothing.
        """
        data, other = entries.data, self._others(entries)
        real = entries.step >= 0  # [B, K + T] of the window, and what was held before it
        real[:, : entries.before] = data["count"][:, : entries.before] >= 0
        known = (_preference(data["worth"].detach(), real) / APART).clamp(self.explains, 1.0)  # [B]
        alike = (other["worth"] - data["worth"]).detach().abs().neg().exp() * known[:, None]
        drawn = torch.rand(data["count"].shape, generator=self.rng).to(alike.device) < self.spec.swap * alike
        drawn = drawn & (other["count"] >= 0)
        key = torch.where(drawn[..., None, None], other["key"], data["key"])
        return {**data, "key": key, "worth": torch.where(drawn, other["worth"], data["worth"])}

    def _looked(self, notes: Tree, entries: Entries, core: StrategicCore) -> tuple[Tensor, Tensor]:
        """At the surprising steps: attention's logits [B, M, H, N], and what the critic reads by it [B, M, F + H·d]."""
        now, valid = entries.before + notes["at"], _seen(notes["at"], entries)
        logits = core.match_all(entries.data, now).masked_fill(~valid.unsqueeze(2), -torch.inf)
        return logits, core.recall_all(entries.data, now, logits)

    def _valued(self, notes: Tree, read: Tensor) -> Tensor:
        """Q [B, M, A] by what is read, or [B, M, 1] of the action taken; less its mean under the policy: what is no
        action's doing explains nothing."""
        if self.discrete:
            value: Tensor = self.critic(read)  # [B, M, A]
            value = value - (notes["policy"] * value).sum(dim=-1, keepdim=True)
        else:
            actions = torch.cat([notes["action"].unsqueeze(2), notes["drawn"]], dim=2)  # [B, M, 1 + DRAWS, A]
            values = self._of_actions(read, actions)
            value = values[:, :, :1] - values[:, :, 1:].mean(dim=2, keepdim=True)
        return value

    def _of_actions(self, read: Tensor, actions: Tensor) -> Tensor:
        """Q [B, M, S] of actions [B, M, S, A] that aren't counted, given what was read."""
        value: Tensor = self.critic(
            torch.cat([read.unsqueeze(2).expand(*actions.shape[:3], -1), self._action_features(actions)], -1)
        )
        return value.squeeze(-1)

    def _action_features(self, actions: Tensor) -> Tensor:
        """Actions [..., A] that aren't counted, as features [..., D]."""
        space, lead = self.context.world.action_space, actions.shape[:-1]
        return vector(space, actions.reshape(*lead, *(space.shape or ()))).reshape(*lead, -1)

    def _of(self, value: Tensor, action: Tensor) -> Tensor:
        """The value [B, M] of the action taken."""
        return value.gather(-1, action.long().unsqueeze(-1)).squeeze(-1) if self.discrete else value.squeeze(-1)


def surprising(error: Tensor, mask: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` steps of each window, [B, M], and which of them are real: half the largest |error|, half drawn by it."""
    size = torch.where(mask, error.abs() + 1e-8, 0.0)  # [B, T]
    most = min(count - count // 2, size.shape[1])
    at = size.topk(most, dim=1).indices
    if count > most:
        drawn = torch.multinomial(size.cpu() + 1e-12 * mask.cpu(), count - most, replacement=True, generator=rng)
        at = torch.cat([at, drawn.to(size.device)], dim=1)
    return at, take(mask, at)


def _seen(at: Tensor, entries: Entries) -> Tensor:
    """Which entries [B, M, N] there were at each step: those held before, and the window's up to it."""
    count = entries.data["count"]
    place = torch.arange(count.shape[1], device=at.device) - entries.before
    real = (count >= 0)[:, None]
    return real & (place <= at[..., None])


def _evenly(among: Tensor) -> Tensor:
    """1 in all, shared out to these entries [..., N] alike."""
    return among / among.sum(dim=-1, keepdim=True).clamp(min=1)


def _preference(worth: Tensor, valid: Tensor) -> Tensor:
    """How far softmax(ρ) [...] is from even among the valid [..., N]: its divergence in nats, at most 1."""
    log_p = torch.log_softmax(worth.masked_fill(~valid, -torch.inf), dim=-1)
    beside_even = log_p + valid.sum(dim=-1, keepdim=True).clamp(min=1).log()
    return torch.where(valid, log_p.exp() * beside_even, 0.0).sum(dim=-1).clamp(max=1.0)


def _cross_entropy(target: Tensor, logits: Tensor, valid: Tensor) -> Tensor:
    """`−Σ p log softmax` [...] over the last axis, among the valid."""
    log_p = torch.log_softmax(logits.masked_fill(~valid, -torch.inf), dim=-1)
    return -torch.where(valid, target * log_p, 0.0).sum(dim=-1)


def _mean_actor_critic(policy: Categorical, value: Tensor) -> Tensor:
    """`−Σ_a π(a) A(a)` [B, M]."""
    pi = policy.log_probs.exp()
    return -(pi * (value - (pi.detach() * value).sum(dim=-1, keepdim=True))).sum(dim=-1)


def _core(net: Net, part: str) -> StrategicCore:
    core = net.parts[part].core
    assert isinstance(core, StrategicCore)
    return core

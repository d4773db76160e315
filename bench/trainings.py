"""Workloads of the speed benchmark: trainings beside Stable-Baselines3's, its contrib package's and Tianshou's.

All sides have the same env, net, batch sizes and number of gradient steps, which are counted. Ours is a spec, as a user
would write it, run by the bare loop of `LabLearner`. A training is timed after a warm-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

import slm_lab.env.tasks  # noqa: F401  registers our tasks with Gymnasium
from bench.peers import PEER_KEYS
from bench.race import LabLearner
from bench.workload import Sample, Side, Workload, cpu_rate
from slm_lab.agent.net.layers import linear
from slm_lab.spec.load import apply_overrides, load_file, pick
from slm_lab.spec.validate import resolve

ROOT = Path(__file__).parents[1]
SB3, CONTRIB, TIANSHOU = "stable_baselines3", "sb3_contrib", "tianshou"
FOREVER = 10**9  # frames

Spec = dict[str, Any]


# ---- sides -----------------------------------------------------------------------------------------------------------


def ours(raw: Spec, warm: int, frames: int, share: float, per: str = "frames") -> Sample:
    """Frames (or updates) a CPU second of a spec, over `frames` frames that follow `warm` ones."""
    learner = LabLearner(resolve(raw, "speed"), 0)
    until(learner, warm)
    frame, updates = learner.frame, learner.agent.opt_step
    began = time.process_time()
    until(learner, frame + round(frames * share))
    seconds = time.process_time() - began
    work = {"frames": learner.frame - frame, "updates": learner.agent.opt_step - updates}
    return Sample(work[per] / seconds, work)


def until(learner: LabLearner, frame: int) -> None:
    while learner.frame < frame:
        learner.advance(FOREVER)


def peer(make: Callable[[], Any], optim: str, warm: int, frames: int, share: float, per: str = "frames") -> Sample:
    """The same of a Stable-Baselines3 model; gradient steps are counted of its optimiser at the path `optim`."""
    model = make()
    model.learn(warm, log_interval=FOREVER)
    updates = 0

    def count(*_: Any) -> None:
        nonlocal updates
        updates += 1

    holder: Any = model
    for name in optim.split("."):
        holder = getattr(holder, name)
    holder.register_step_post_hook(count)
    frame, began = model.num_timesteps, time.process_time()
    model.learn(round(frames * share), log_interval=FOREVER, reset_num_timesteps=False)
    seconds = time.process_time() - began
    work = {"frames": model.num_timesteps - frame, "updates": updates}
    return Sample(work[per] / seconds, work)


def worlds(name: str, count: int, **arguments: Any) -> Any:
    """Stable-Baselines3's vector for light envs, without its Monitor: it costs, and ours keeps no statistics here."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv([lambda: gymnasium.make(name, **arguments) for _ in range(count)])


# ---- PPO -------------------------------------------------------------------------------------------------------------


def ppo_spec(num_envs: int = 4, **algorithm: Any) -> Spec:
    learns = {"name": "PPO", "gamma": 0.98, "lam": 0.95, "time_horizon": 256, "minibatch_size": 128}
    return {
        "agent": {
            "name": "PPO",
            "algorithm": {**learns, "training_epoch": 15, **algorithm},
            "memory": {"name": "OnPolicyBatchReplay"},
            "net": {"name": "MLP", "hid_layers": [64, 64], "optim_spec": {"name": "Adam", "lr": 3e-4}},
        },
        "env": {"name": "CartPole-v1", "num_envs": num_envs, "max_frame": FOREVER},
    }


def ppo_sb3() -> Any:
    from stable_baselines3 import PPO

    rollout = {"n_steps": 256, "batch_size": 128, "n_epochs": 15}
    return PPO("MlpPolicy", worlds("CartPole-v1", 4), gamma=0.98, **rollout, device="cpu", seed=0)


def recurrent_spec(shared: bool) -> Spec:
    """Rollouts of two episodes, each a row longer in our worlds: 32 frames of 32 worlds, minibatches of 128 frames."""
    learns = {"name": "PPO", "lam": 0.95, "time_horizon": 34, "minibatch_size": 4 * 34, "training_epoch": 10}
    net = {"name": "MLP", "shared": shared, "hid_layers": [], "head_hid_layers": [64, 64]}
    return {
        "agent": {
            "name": "PPO with LSTM",
            "algorithm": learns,
            "memory": {"name": "OnPolicyBatchReplay"},
            "net": {**net, "core": {"name": "LSTM", "hidden_size": 256}, "optim_spec": {"name": "Adam", "lr": 3e-4}},
        },
        "env": {"name": "MemoryTask", "delay": 16, "difficulty": 1, "num_envs": 32, "max_frame": FOREVER},
    }


def recurrent_sb3(shared: bool) -> Any:
    """RecurrentPPO's own net: an LSTM of 256 (one each, or one for both) and 64 x 64 after it."""
    from sb3_contrib import RecurrentPPO

    env = worlds("slm_lab/MemoryTask-v0", 32, delay=16, difficulty=1)
    net = {"shared_lstm": True, "enable_critic_lstm": False} if shared else {}
    rollout = {"n_steps": 32, "batch_size": 128, "n_epochs": 10}
    return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=net, **rollout, device="cpu", seed=0)


def strategic_spec(delay: int) -> Spec:
    """StrategicMemory as it is told to be used: an update after 64 episodes."""
    file = "specs/strategic/memory_task.json"
    raw = pick(load_file(ROOT / file), None, file)[1]
    return apply_overrides(raw, [f"env.delay={delay}", f"env.max_frame={FOREVER}"])


def recurrent_peer(delay: int) -> Any:
    """RecurrentPPO as the race of `bench memory_task` has it: one world, two episodes a rollout."""
    from sb3_contrib import RecurrentPPO

    env = gymnasium.make("slm_lab/MemoryTask-v0", delay=delay, difficulty=1)
    return RecurrentPPO("MlpLstmPolicy", env, **PEER_KEYS, n_steps=2 * delay, device="cpu", seed=0)


# ---- off-policy ------------------------------------------------------------------------------------------------------

WARM_UP = 1_000  # frames before the first update
EPSILON = 0.05  # of all: a peer doesn't ask its net where it strays


def dqn_spec(prioritized: bool = False) -> Spec:
    """One update a frame, of a batch of 32; the target is copied every 500 frames."""
    learns = {"name": "DoubleDQN" if prioritized else "DQN", "training_frequency": 1, "update_frequency": 500}
    explores = {"name": "no_decay", "start_val": EPSILON}
    net = {"name": "MLP", "hid_layers": [64, 64], "hid_layers_activation": "relu", "init_fn": None}
    # as the peers have it: SB3 clips, Tianshou doesn't, and only its squared loss takes the weights of its memory
    loss, clip = ("MSELoss", None) if prioritized else ("SmoothL1Loss", 10.0)
    net |= {"critic_init_std": None, "clip_grad_val": clip, "loss_spec": {"name": loss}}
    return {
        "agent": {
            "name": "DQN",
            "algorithm": {**learns, "training_start_step": WARM_UP, "explore_var_spec": explores},
            "memory": {"name": "PrioritizedReplay" if prioritized else "Replay", "max_size": 100_000, "batch_size": 32},
            "net": {**net, "optim_spec": {"name": "Adam", "lr": 1e-3}},
        },
        "env": {"name": "CartPole-v1", "num_envs": 1, "max_frame": FOREVER},
    }


def dqn_sb3() -> Any:
    from stable_baselines3 import DQN

    keys: dict[str, Any] = {"learning_starts": WARM_UP, "buffer_size": 100_000, "batch_size": 32, "train_freq": 1}
    keys |= {"gradient_steps": 1, "target_update_interval": 500, "policy_kwargs": {"net_arch": [64, 64]}}
    keys |= {"exploration_initial_eps": EPSILON, "exploration_final_eps": EPSILON}
    return DQN("MlpPolicy", worlds("CartPole-v1", 1), learning_rate=1e-3, **keys, device="cpu", seed=0)


class TianshouDDQN:
    """Tianshou's Double DQN with prioritized replay, with the face of a Stable-Baselines3 model.

    It plays ten frames at a time and then learns ten times: as its calls are costly, it is faster so than one by one.
    """

    AT_ONCE = 10

    def __init__(self) -> None:
        from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
        from tianshou.algorithm.optim import AdamOptimizerFactory
        from tianshou.data import Collector, PrioritizedVectorReplayBuffer
        from tianshou.env import DummyVectorEnv
        from tianshou.utils.net.common import Net

        env = gymnasium.make("CartPole-v1")
        net = Net(state_shape=env.observation_space.shape, action_shape=env.action_space.n, hidden_sizes=[64, 64])
        policy = DiscreteQLearningPolicy(model=net, action_space=env.action_space, eps_training=EPSILON)
        optim = AdamOptimizerFactory(lr=1e-3)
        self.algorithm = DQN(policy=policy, optim=optim, target_update_freq=500, is_double=True)
        buffer = PrioritizedVectorReplayBuffer(100_000, 1, alpha=0.6, beta=0.4)
        worlds = DummyVectorEnv([lambda: gymnasium.make("CartPole-v1")])
        self.collector, self.num_timesteps = Collector(policy, worlds, buffer, exploration_noise=True), 0
        self.optimizer = self.algorithm.optim._optim

    def learn(self, frames: int, **_: Any) -> None:
        from tianshou.utils.torch_utils import policy_within_training_step

        if not self.num_timesteps:
            self.collector.reset()
            self.num_timesteps = self.collector.collect(n_step=WARM_UP, random=True).n_collected_steps
            frames -= WARM_UP
        with policy_within_training_step(self.algorithm.policy):
            for _turn in range(frames // self.AT_ONCE):
                self.num_timesteps += self.collector.collect(n_step=self.AT_ONCE).n_collected_steps
                for _update in range(self.AT_ONCE):
                    self.algorithm.update(self.collector.buffer, 32)


def sac_spec() -> Spec:
    """256 x 256 for the actor and each critic, which take observation and action together."""
    net = {"name": "MLP", "hid_layers": [], "head_hid_layers": [256, 256], "hid_layers_activation": "relu"}
    net |= {"init_fn": None, "actor_init_std": None, "critic_init_std": None, "clip_grad_val": None}
    return {
        "agent": {
            "name": "SAC",
            "algorithm": {"name": "SAC", "training_frequency": 1, "training_start_step": WARM_UP},
            "memory": {"name": "Replay", "max_size": 100_000, "batch_size": 256},
            "net": {**net, "optim_spec": {"name": "Adam", "lr": 3e-4}},
        },
        "env": {"name": "Pendulum-v1", "num_envs": 1, "max_frame": FOREVER},
    }


def sac_sb3() -> Any:
    from stable_baselines3 import SAC

    keys: dict[str, Any] = {"learning_starts": WARM_UP, "buffer_size": 100_000, "batch_size": 256, "train_freq": 1}
    return SAC("MlpPolicy", worlds("Pendulum-v1", 1), gradient_steps=1, **keys, device="cpu", seed=0)


def wide_layers(layer: Callable[[int, int], nn.Linear], share: float) -> Sample:
    """Forward and backward of two layers of 256 with 256 rows, as SAC has them: times a CPU second."""
    layers, x = nn.Sequential(layer(256, 256), nn.ReLU(), layer(256, 256)), torch.randn(256, 256)

    def updates(count: int) -> None:
        for _ in range(count):
            layers.zero_grad()
            layers(x).sum().backward()

    updates(20)
    times = round(400 * share)
    return Sample(cpu_rate(times, partial(updates, times)), {"updates": times})


# ---- ours alone ------------------------------------------------------------------------------------------------------


def many_worlds(count: int, share: float) -> Sample:
    """PPO with ever more worlds: updates of 2,048 rows, however many worlds they come from."""
    raw = ppo_spec(count, time_horizon=2_048 // count, training_epoch=4)
    return ours(raw, 2_048, 16_384, share)


LAST = 64  # steps


def long_episodes(delay: int, share: float) -> Sample:
    """Milliseconds in which StrategicMemory acts in 64 worlds; the median of the last steps of an episode."""
    learner = LabLearner(resolve(strategic_spec(delay), "speed"), 0)
    agent, act, seconds = learner.agent, learner.agent.act, []

    def timed(*arguments: Any) -> Any:
        began = time.process_time()
        out = act(*arguments)
        seconds.append(time.process_time() - began)
        return out

    agent.act = timed  # type: ignore[method-assign]
    while len(seconds) < LAST or learner.agent.opt_step == 0:  # an update follows the episodes' ends
        learner.advance(FOREVER)
    return Sample(1e3 * float(np.median(seconds[-LAST:])))


# ---- tables ----------------------------------------------------------------------------------------------------------


def training(
    name: str, what: str, ratio: float, spec: Spec, peers: Mapping[str, tuple[str, Callable[[], Any], str]],
    warm: int, frames: int, per: str = "frames", note: str = "", missed: str = "",
) -> Workload:  # fmt: skip
    """`peers`: name -> package, model, where its optimiser is."""
    sides = {"ours": Side(partial(ours, spec, warm, frames, per=per))}
    for who, (package, make, optim) in peers.items():
        sides[who] = Side(partial(peer, make, optim, warm, frames, per=per), package)
    return Workload(name, what, f"{per}/s", sides, ratio, note=note, missed=missed)


POLICY = "policy.optimizer"

WORKLOADS = [
    training(
        "ppo", "PPO, CartPole-v1: 4 worlds, horizon 256, minibatch 128, 15 epochs, 64x64 tanh each", 2.5,
        ppo_spec(), {"SB3": (SB3, ppo_sb3, POLICY)}, 2_048, 49_152,
        note="Advantages are standardised once a batch by ours, once a minibatch by SB3, which asks its critic at each "
        "step and not once a batch. Tianshou isn't raced: "
        "measured once, elsewhere, it had 1,300 frames/s for SB3's 1,900",
        missed="On another make of CPU it was 1.94 and, later, 2.53 (2.24 to 2.73). A frame takes us 104 µs, SB3 220; "
        "of both, 30 are products and tanh by torch's kernels, which on this make of CPU are slow: the rest would "
        "be 2.5 times alone. Forward and backward by hand gave 1.02",
    ),
    training(
        "dqn", "DQN, CartPole-v1: batch 32, an update a frame, 64x64 relu", 1.8,
        dqn_spec(), {"SB3": (SB3, dqn_sb3, POLICY)}, 1_500, 5_000,
        missed="A frame takes some 540 µs: acting 84, the world 43, storing and drawing 37, the update "
        "361 (targets 77, forward 41, errors and their mean 68, backward 87, clip and Adam 44, calls between). "
        "Forward and backward by hand would save some 70 µs, but be a second path for one kind of net; other places "
        "give 2 to 12 µs each, a tenth in all; the rest are torch's own kernels, which the peer has too",
    ),
    training(
        "ddqn_per", "Double DQN with prioritized replay, else as dqn", 3.0,
        dqn_spec(prioritized=True), {"Tianshou": (TIANSHOU, TianshouDDQN, "optimizer")}, 1_500, 3_000,
        note="SLM-Lab can't be installed beside ours: absent; 311 frames/s of it were measured once, elsewhere",
        missed="A frame takes some 750 µs: as dqn, and 60 more for targets by two nets, 110 to draw by priority, set "
        "new ones and bring in a new row. The target is SLM-Lab's factor, measured on another machine",
    ),
    training(
        "sac", "SAC, Pendulum-v1: batch 256, an update a frame, 256x256 relu", 1.4,
        sac_spec(), {"SB3": (SB3, sac_sb3, "critic.optimizer")}, 1_200, 500, "updates",
    ),
    Workload(
        "wide_layers", "two layers of 256 x 256, 256 rows, forward and backward: SAC's, beside torch.nn.Linear",
        "updates/s", {"ours": Side(partial(wide_layers, linear)), "torch": Side(partial(wide_layers, nn.Linear))}, 1.0,
        note="How much oneDNN gains over what torch calls, which goes by the make of CPU",
    ),
    training(
        "lstm_ppo", "recurrent PPO, MemoryTask 16: 32 worlds, LSTM 256 and 64x64 for actor and critic each", 4.0,
        recurrent_spec(shared=False), {"SB3": (CONTRIB, partial(recurrent_sb3, shared=False), POLICY)}, 1_024, 4_096,
        note="The peer steps 32 worlds one by one, ours are one vector: about 1 % of the peer's time",
        missed="On another make of CPU it was 5.59, on this one 3.58 to 3.85 when measured at other hours. Of our time "
        "0.58 is oneDNN's LSTM, which the peer calls too; laying out lanes, for actor and critic, is 0.03",
    ),
    training(
        "lstm_ppo_shared", "the same with one LSTM for both", 4.0,
        recurrent_spec(shared=True), {"SB3": (CONTRIB, partial(recurrent_sb3, shared=True), POLICY)}, 1_024, 6_144,
        note="The peer's critic doesn't teach the LSTM that it reads, ours does: a little more for ours to do. At five "
        "other hours the same code had 3.62 to 4.05: what else the machine does slows ours more",
    ),
    Workload(
        "strategic", "MemoryTask 256: StrategicMemory beside a recurrent PPO", "frames/s",
        {
            "ours": Side(partial(ours, strategic_spec(256), 16_384, 65_536)),
            "SB3": Side(partial(peer, partial(recurrent_peer, 256), POLICY, 512, 512), CONTRIB),
        },
        note="Each as it is used and not the same work, so no target. Who learns it: memory_task.md and strategic.md",
    ),
    Workload(
        "worlds", "PPO, 64x64, 4 epochs, 2,048 rows an update", "frames/s",
        {str(count): Side(partial(many_worlds, count)) for count in (1, 4, 16, 64, 256)}, axis="worlds",
    ),
    Workload(
        "delays", "StrategicMemory acts in 64 worlds", "ms",
        {str(delay): Side(partial(long_episodes, delay)) for delay in (16, 64, 256, 1024, 4096)},
        axis="delay", less=True,
    ),
]  # fmt: skip

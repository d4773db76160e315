from __future__ import annotations

import copy
import difflib
import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spec_fakes import make_raw

from slm_lab.lib.errors import LabError, SpecError
from slm_lab.spec.load import apply_overrides
from slm_lab.spec.validate import resolve

pytestmark = pytest.mark.usefixtures("fakes")
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def problems(raw, **options):
    with pytest.raises(SpecError) as error:
        resolve(raw, "test", **options)
    return [str(problem) for problem in error.value.problems]


def test_defaults_are_written_out(raw):
    spec = resolve(raw, "test")
    assert spec.agent.algorithm.gamma == 0.9 and spec.agent.net.core == {
        "name": "GRU",
        "hidden_size": 8,
        "num_layers": 1,
    }
    assert spec.env.model_extra == {"size": 3}
    assert (spec.meta.eval_frequency, spec.meta.checkpoint_frequency) == (1000, 500)
    assert json.loads(json.dumps(spec.dump())) == spec.dump()
    assert spec.dump()["search"] == raw["search"]


def test_what_may_be_left_out(raw):
    del raw["meta"], raw["search"], raw["agent"]["net"], raw["agent"]["name"]
    spec = resolve(raw, "test")
    assert (spec.agent.name, spec.agent.net.name, spec.meta.max_session) == ("PPO", "MLP", 1)
    assert "search" not in spec.dump()


# one clear message for each bad input: dotted path, value in YAML, the message
BAD = [
    ("agent.algorithm.gama=0.9", "agent.algorithm.gama: unknown key. Did you mean 'gamma'?"),
    ("agent.net.core.hidden_sise=3", "agent.net.core.hidden_sise: unknown key. Did you mean 'hidden_size'?"),
    (
        "agent.algorithm.clip_eps_spec={start_val: 1, endval: 2}",
        "agent.algorithm.clip_eps_spec.endval: unknown key. Did you mean 'end_val'?",
    ),
    ("agent.algoritm.name=PPO", "agent.algoritm: unknown key. Did you mean 'algorithm'?"),
    ("mta.seed=1", "mta: unknown section. Did you mean 'meta'?"),
    ("meta.max_sesion=1", "meta.max_sesion: unknown key. Did you mean 'max_session'?"),
    (
        "agent.algorithm.gamma=1.5",
        "agent.algorithm.gamma: 1.5 is above 1 (expected: number from 0 to 1; discount factor)",
    ),
    (
        "agent.algorithm.gamma=high",
        "agent.algorithm.gamma: 'high' is text (expected: number from 0 to 1; discount factor)",
    ),
    (
        "agent.algorithm.gamma=[1]",
        "agent.algorithm.gamma: [1] is a list (expected: number from 0 to 1; discount factor)",
    ),
    (
        "agent.algorithm.gamma=true",
        "agent.algorithm.gamma: true is no number (expected: number from 0 to 1; discount factor)",
    ),
    ("agent.algorithm.lam=-1", "agent.algorithm.lam: -1 is below 0 (expected: number from 0 to 1 | null)"),
    (
        "agent.algorithm.time_horizon=2.5",
        "agent.algorithm.time_horizon: 2.5 isn't a whole number "
        "(expected: whole number >= 1; steps per env between updates)",
    ),
    ("env.max_frame=null", "env.max_frame: null is no value (expected: whole number >= 1; frames of a session)"),
    ("env.max_frame='2e5'", "env.max_frame: '2e5' is text. YAML reads 2e5 as text: write 200000 or 2.0e+5"),
    ("env.max_frame='200'", "env.max_frame: '200' is text. Write it without quotes: 200"),
    (
        "agent.net.optim_spec.lr='3e-4'",
        "agent.net.optim_spec.lr: '3e-4' is text. YAML reads 3e-4 as text: write 0.0003 or 3.0e-4",
    ),
    ("agent.net.hid_layers=[64, -1]", "agent.net.hid_layers.1: -1 is below 1 (expected: whole number >= 1)"),
    ("agent.net.hid_layers=[1, 2, 3, 4, 5, 6]", "agent.net: more than 5 layers"),
    (
        "agent.net.hid_layers_activation=rellu",
        "agent.net.hid_layers_activation: 'rellu' is no option. Did you mean 'relu'?",
    ),
    (
        "agent.net.optim_spec=Adam",
        "agent.net.optim_spec: 'Adam' is text "
        "(expected: mapping with name, lr, eps, weight_decay, alpha, momentum, betas; An optimiser of torch.optim.)",
    ),
    (
        "agent.net.optim_spec.betas=[0.9]",
        "agent.net.optim_spec.betas: [0.9] has 1 items (expected: list of 2: number >= 0, < 1 | null; betas of Adam, AdamW)",
    ),
    ("agent.algorithm.name=PO", "agent.algorithm.name: unknown algorithm 'PO'. Did you mean 'PPO'?"),
    ("agent.algorithm.name=[]", "agent.algorithm.name: unknown algorithm []. Options: DQN, PPO."),
    ("agent.memory={}", "agent.memory.name: missing (expected: OnPolicyBatchReplay | Replay)"),
    (
        "agent.memory=Replay",
        "agent.memory: 'Replay' is no mapping: write {name: Replay}",
    ),
    (
        "agent.net.core={name: LSTMM}",
        "agent.net.core.name: unknown core 'LSTMM'. Options: GRU, none. One of your own: module:LSTMM.",
    ),
    ("agent.net.core=GRU", "agent.net.core: 'GRU' is no mapping: write {name: GRU}"),
    ("agent.net.core=GRUU", "agent.net.core: 'GRUU' is no mapping (expected: mapping with name: none | GRU)"),
    (
        "meta.max_session=yes",
        "meta.max_session: true is no number (expected: whole number >= 1; sessions (seeds) of a trial)",
    ),
    ("agent.name=[1]", "agent.name: [1] is no name (expected: text)"),
    (
        "agent.memory.name=Replay",
        "agent.memory.name: Replay doesn't fit: "
        "PPO learns on-policy and needs an on-policy memory: use OnPolicyBatchReplay",
    ),
    ("env.name=NoSuchEnv-v0", "env.name: no such env"),
    ("env.name=Strange-v0", "agent.algorithm.name: no such actions"),
    ("env.name=${nothing}", "env.name: ${nothing} has no value. Give it one in 'vars', or with --set nothing=..."),
    ("search.x=${nothing}", "search.x: ${nothing} has no value. Give it one in 'vars', or with --set nothing=..."),
]


@pytest.mark.parametrize(("override", "message"), BAD)
def test_each_fault_has_one_clear_message(raw, override, message):
    assert problems(apply_overrides(raw, [override])) == [message]


def test_missing_sections_and_keys(raw):
    del raw["agent"], raw["env"]["max_frame"]
    raw["meta"] = [1]
    assert problems(raw) == [
        "agent: missing section (expected: mapping)",
        "meta: [1] is no section (expected: mapping)",
        "env.max_frame: missing (expected: whole number >= 1; frames of a session)",
    ]


def test_a_part_one_level_too_high_is_sent_under_agent(raw):
    raw["net"] = raw["agent"].pop("net")
    assert problems(raw) == [
        "net: unknown section. It belongs under agent: agent.net",
        "agent.net: missing: net stands beside agent",
    ]


def test_all_problems_come_at_once(raw):
    faults = [
        "agent.algorithm.gama=1",
        "agent.memory.name=Replai",
        "env.max_frame=0",
        "meta.seed=-1",
        "agent.net.core.name=LSTM",
    ]
    assert len(problems(apply_overrides(raw, faults))) == len(faults)


def test_without_the_env_nothing_is_built(raw):
    raw["env"]["name"] = "NoSuchEnv-v0"
    assert resolve(raw, "test", check_env=False).env.name == "NoSuchEnv-v0"


VALUES = {
    "agent.algorithm.gamma": st.floats(0, 1),
    "agent.algorithm.lam": st.none() | st.floats(0, 1),
    "agent.algorithm.clip_eps_spec.start_val": st.floats(-1e9, 1e9),
    "agent.net.hid_layers": st.lists(st.integers(1, 512), max_size=5),
    "agent.net.core": st.sampled_from([{"name": "none"}, {"name": "GRU"}, {"name": "GRU", "num_layers": 2}]),
    "env.max_frame": st.integers(1, 10**9) | st.integers(1, 10**6).map(float),
    "env.key": st.text() | st.booleans() | st.lists(st.integers()),
    "meta.log_frequency": st.integers(1, 10**9),
    "meta.max_trial": st.none() | st.integers(1, 9),
    "meta.metric": st.sampled_from(["final_return", "strength"]),
}


def put(raw, path, value):
    *parents, last = path.split(".")
    for key in parents:
        raw = raw.setdefault(key, {})
    raw[last] = value


@quick
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_a_dumped_spec_loads_again(values):
    raw = make_raw()
    for path, value in values.items():
        if "${" not in str(value):
            put(raw, path, value)
    before = copy.deepcopy(raw)
    spec = resolve(raw, "test")
    again = resolve(json.loads(json.dumps(spec.dump())), "test")
    assert again == spec and again.dump() == spec.dump() and raw == before and not spec.notes


KEYS = {
    "agent.algorithm": ["gamma", "time_horizon", "minibatch_size", "entropy_coef_spec", "clip_vloss"],
    "agent.net": ["hid_layers", "optim_spec", "clip_grad_val", "device"],
    "agent.net.core": ["hidden_size", "num_layers"],
    "meta": ["max_session", "eval_frequency", "torch_threads", "tensorboard"],
}


@quick
@given(st.data())
def test_a_typo_is_answered_with_the_right_key(data):
    path = data.draw(st.sampled_from(sorted(KEYS)))
    key = data.draw(st.sampled_from(KEYS[path]))
    i = data.draw(st.integers(0, len(key) - 1))
    typo = data.draw(
        st.sampled_from([key[:i] + key[i + 1 :], key[:i] + "q" + key[i + 1 :], key[:i] + key[i] + key[i:]])
    )
    raw = make_raw()
    put(raw, f"{path}.{typo}", 1)
    if typo != key and difflib.SequenceMatcher(None, typo, key).ratio() > 0.8:
        assert problems(raw) == [f"{path}.{typo}: unknown key. Did you mean '{key}'?"]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("${x}") | st.just("2e5"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "net", "x", "core", "type"]), inner, max_size=3)
    ),
    max_leaves=8,
)
PLACES = [
    "agent",
    "env",
    "meta",
    "search",
    "vars",
    "agent.algorithm",
    "agent.net",
    "agent.net.type",
    "agent.net.core",
    "agent.memory",
    "agent.algorithm.name",
    "agent.algorithm.clip_eps_spec",
    "agent.net.hid_layers",
    "env.max_frame",
]


@quick
@given(st.dictionaries(st.sampled_from(PLACES), JUNK, min_size=1, max_size=3))
def test_junk_is_refused_in_words(junk):
    raw = make_raw()
    for path, value in sorted(junk.items()):
        try:
            put(raw, path, value)
        except (AttributeError, TypeError):
            continue
    try:
        resolve(raw, "test")
    except LabError as error:
        assert "function-" not in str(error)


@pytest.mark.parametrize("raw", [None, 3, [], "spec"])
def test_what_is_no_mapping_is_no_spec(raw):
    assert "is no spec" in problems(raw)[0]


def test_reading_specs_needs_no_torch():
    modules = ", ".join(f"slm_lab.spec.{name}" for name in ("load", "validate", "schema", "reference"))
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

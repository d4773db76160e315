"""The search section: what is read from it, what a point of it makes, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from small_specs import raw_spec

from slm_lab.lib.errors import LabError, SpecError
from slm_lab.spec.search import check_search, grid_points, trial_count
from slm_lab.spec.space import label, labels, make_raw, read_space
from slm_lab.spec.validate import resolve

CORE = "agent.net.core"


def searched(search: dict[str, Any], **changes: Any) -> Any:
    raw = {**raw_spec(**changes), "search": search}
    spec = resolve(raw, "x", check_env=False)
    return raw, spec, check_search(raw, spec)


def test_nested_and_dotted_keys_are_the_same_space():
    dotted, _ = read_space({"agent.algorithm.gamma__uniform": [0.9, 0.99], "env.num_envs__choice": [1, 2]})
    nested, _ = read_space(
        {"agent": {"algorithm": {"gamma__uniform": [0.9, 0.99]}}, "env": {"num_envs__choice": [1, 2]}}
    )
    assert dotted == nested and [v.path for v in dotted] == ["agent.algorithm.gamma", "env.num_envs"]


def test_a_point_is_set_and_the_rest_of_the_spec_stays():
    raw = raw_spec()
    made, lost = make_raw({**raw, "search": {}}, {"agent.algorithm.gamma": 0.5, "agent.net.optim_spec.lr": 0.1})
    assert made["agent"]["algorithm"] == {**raw["agent"]["algorithm"], "gamma": 0.5} and not lost
    assert made["agent"]["net"]["optim_spec"] == {"lr": 0.1} and made["env"] == raw["env"] and "search" not in made
    assert "gamma" not in raw["agent"]["algorithm"], "the spec itself was changed"


def test_a_part_is_searched_by_its_name_and_keys_that_it_lacks_go():
    raw = raw_spec(agent__net__core={"name": "GRU", "hidden_size": 8})
    none, lost = make_raw(raw, {f"{CORE}.name": "none", f"{CORE}.hidden_size": 64})
    assert none["agent"]["net"]["core"] == {"name": "none"} and lost == [f"{CORE}.hidden_size"]
    lstm, lost = make_raw(raw, {f"{CORE}.name": "LSTM", f"{CORE}.hidden_size": 64})
    assert lstm["agent"]["net"]["core"] == {"name": "LSTM", "hidden_size": 64} and not lost


def test_a_mapping_sets_its_keys_together():
    strategic = {"memory": {"name": "StrategicMemory"}, "net": {"shared": True}}
    raw, _, variables = searched({"agent__choice": [{"net": {"core": {"name": "GRU"}}}, strategic],
                                  "agent.memory.slots__choice": [4, 8]})  # fmt: skip
    made, lost = make_raw(raw, {"agent": strategic, "agent.memory.slots": 8})
    assert made["agent"]["memory"] == {"name": "StrategicMemory", "slots": 8} and not lost
    assert made["agent"]["net"]["hid_layers"] == [16], "what the mapping doesn't name stays"
    resolve(made, "x", check_env=False)
    assert [label(value) for value in variables[0].args] == ["GRU", "StrategicMemory"]


def test_a_variable_may_stand_in_several_places():
    raw, _, variables = searched(
        {"vars.size__choice": [8, 24]}, vars={"size": 4}, agent__net__core={"name": "GRU", "hidden_size": "${size}"}
    )
    made, _ = make_raw(raw, {variables[0].path: 24})
    assert resolve(made, "x", check_env=False).agent.net.core["hidden_size"] == 24


def test_labels_are_short_and_tell_apart():
    variables, _ = read_space({f"{CORE}.name__choice": [1], "agent.memory.name__choice": [1], "env.delay__choice": [1]})
    assert list(labels(variables).values()) == ["core.name", "memory.name", "delay"]


def test_the_grid_and_the_number_of_trials():
    search = {f"{CORE}.name__grid_search": ["GRU", "LSTM"], "agent.algorithm.gamma__uniform": [0.9, 0.99],
              "env.num_envs__choice": [1, 2, 4]}  # fmt: skip
    _, spec, variables = searched(search)
    assert grid_points(spec, variables) == [{f"{CORE}.name": "GRU"}, {f"{CORE}.name": "LSTM"}]
    assert trial_count(spec, variables) == 2
    del search["agent.algorithm.gamma__uniform"]
    _, spec, variables = searched(search, meta__search_alg="grid")
    assert len(grid_points(spec, variables)) == trial_count(spec, variables) == 6
    _, spec, variables = searched({"env.num_envs__choice": [1, 2]}, meta__max_trial=5)
    assert grid_points(spec, variables) == [] and trial_count(spec, variables) == 5


@pytest.mark.parametrize(
    ("search", "parts"),
    [
        ({"agent.algorithm.gamma__unifrm": [0.9, 1]}, ["unknown distribution 'unifrm'", "Did you mean 'uniform'"]),
        ({"agent.algorithm.gamma": [0.9, 1]}, ["no distribution", "agent.algorithm.gamma__choice"]),
        ({"agent.algorithm.gamma__uniform": [0.99, 0.9]}, ["from 0.99 to 0.9 is empty"]),
        ({"agent.algorithm.gamma__uniform": [0.9]}, ["[0.9] is no range", "[low, high]"]),
        ({"agent.algorithm.gamma__uniform": ["0.9", 1]}, ["'0.9' isn't a number", "without quotes: 0.9"]),
        ({"agent.algorithm.gamma__choice": []}, ["has no values"]),
        ({"agent.algorithm.gamma__choice": [0.9, 0.9]}, ["0.9 is there twice"]),
        ({"agent.net.optim_spec.lr__loguniform": [0, 1]}, ["can't begin at 0"]),
        ({"env.num_envs__randint": [1, 2.5]}, ["2.5 isn't a whole number"]),
        ({"env.num_envs__randint": [1, 1e300]}, ["1e+300 isn't a whole number"]),
        ({"env.num_envs__quniform": [1, 2, 5]}, ["step 5 doesn't fit"]),
        ({"env.num_envs__choice": [1], "env": {"num_envs__randint": [1, 3]}}, ["varies already"]),
        ({"agent.algorithm.gama__uniform": [0.9, 1]}, ["unknown key", "Did you mean 'gamma'?"]),
        ({"agent.algorithm.gamma__uniform": [0.9, 1.5]}, ["1.5 is above 1"]),
        ({f"{CORE}.name__choice": ["GRU", "LSTN"]}, ["unknown core 'LSTN'", "'LSTM'"]),
        ({f"{CORE}.name__choice": ["GRU", "none"], f"{CORE}.hiden_size__choice": [8]}, ["Did you mean 'hidden_size'"]),
        ({"agnt.gamma__choice": [1]}, ["agnt", "unknown section"]),
        ({"env.num_envs.x__choice": [1]}, ["env.num_envs is no mapping"]),
        ({"env.max_frames__choice": [100, 200]}, ["env.max_frames: unknown key", "Did you mean 'max_frame'?"]),
        ({"env__choice": [{"name": "CartPole-v1"}, {"name": "CartPoole-v1"}]}, ["unknown env 'CartPoole-v1'"]),
        ({f"{CORE}__choice": [{"name": "GRU"}], f"{CORE}.hidden_size__uniform": [8, 16]}, ["8.5 isn't a whole number"]),
        ({"meta.max_session__choice": [1, 2]}, ["meta.max_session is of the search as a whole"]),
        ({"meta__choice": [{"max_session": 2}]}, ["meta.max_session is of the search as a whole"]),
        ({"meta.search_resources.cpu__choice": [1, 2]}, ["meta.search_resources is of the search as a whole"]),
        ({"meta__choice": [{"distributed": {"workers": 2}}]}, ["meta.distributed", "no cores"]),
        ({"env__choice": [{"dataset": "a.npz"}]}, ["env.dataset: trials are compared by returns", "Use null"]),
        ({f"{CORE}.name__choice": [["GRU", "LSTM"]]}, ["unknown core ['GRU', 'LSTM']"]),
        ({f"{CORE}__choice": [{"name": "GRU", "hidden_size": 8}], f"{CORE}.hidden_size__choice": [4]}, ["give it once"]),
        ({"vars.size__choice": [4, 8]}, ["vars.size", "no ${size}"]),
        ({"agent.net.optim_spec.lr__loguniform": ["1e-4", 1]}, ["YAML reads 1e-4 as text: write 0.0001"]),
        ({"agent.net.init_fn__choice": [None, None]}, ["null is there twice"]),
        ({}, ["nothing to search"]),
    ],
)  # fmt: skip
def test_a_bad_space_is_refused(search, parts):
    with pytest.raises(LabError) as error:
        searched(search)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"meta__max_trial": 0}, ["meta.max_trial", "0 is below 1"]),
        ({"meta__search_alg": "grid"}, ["a grid has no points on a range"]),
        ({"meta__search_alg": "gird"}, ["Did you mean 'grid'"]),
        ({"meta__metric": "final_retun"}, ["Did you mean 'final_return'"]),
        ({"meta__search_resources": {"cpus": 1}}, ["Did you mean 'cpu'"]),
        ({"meta__metric": "consistency"}, ["meta.metric", "consistency compares the sessions"]),
        ({"meta__search_scheduler": {"grace_period": 9}, "meta__log_frequency": 50}, ["first comes at 50 frames"]),
        ({"meta__seed": 2**64}, ["meta.seed"]),
        ({"env__dataset": "a.npz"}, ["env.dataset: trials are compared by returns", "mode train"]),
    ],
)
def test_bad_settings_of_a_search_are_refused(changes, parts):
    with pytest.raises(SpecError) as error:
        searched({"agent.algorithm.gamma__uniform": [0.9, 1]}, **changes)
    for part in parts:
        assert part in str(error.value)


def test_steps_of_one_and_a_worlds_own_keys_are_sound():
    search = {
        f"{CORE}__choice": [{"name": "GRU"}],
        f"{CORE}.hidden_size__quniform": [8, 16, 4],
        "env__choice": [{"name": "CartPole-v1"}, {"name": "MemoryTask"}],
        "env.delay__choice": [4, 8],
    }
    assert len(searched(search)[2]) == 4


def test_the_end_of_a_range_that_no_step_comes_to_is_never_drawn():
    assert len(searched({"agent.algorithm.gamma__quniform": [0.9, 1.05, 0.1]})[2]) == 1
    whole, _ = read_space({"a__qrandint": [0, 20, 6], "b__qrandint": [0, 20, 5]})
    assert [variable.samples() for variable in whole] == [(0, 18), (0, 20)]


def test_parts_that_only_fit_together_are_no_fault_of_the_space():
    search = {
        "agent.algorithm.name__choice": ["PPO", "DQN"],
        "agent.memory.name__choice": ["OnPolicyBatchReplay", "Replay"],
    }
    assert len(searched(search)[2]) == 2


def test_metrics_that_can_be_chosen_are_metrics_of_a_trial():
    from typing import get_args

    from slm_lab.experiment.metrics import trial_metrics
    from slm_lab.spec.lab_spec import Metric

    assert set(get_args(Metric)) <= trial_metrics([])["scalar"].keys()


def test_a_key_of_a_part_that_is_not_there_has_no_place():
    raw = raw_spec()
    made, lost = make_raw(raw, {"agent.memory.slots": 8, "agent.algorithm.gamma": 0.9})
    assert made["agent"]["memory"] == raw["agent"]["memory"] and lost == ["agent.memory.slots"]
    with pytest.raises(SpecError, match=r"agent.memory.slots: OnPolicyBatchReplay has no such key"):
        searched({"agent.memory.slots__choice": [4, 8]})


def test_what_fits_only_beside_another_value_that_is_searched_is_sound():
    schedule = "agent.algorithm.entropy_coef_spec"
    search = {f"{schedule}.start_step__choice": [0, 500], f"{schedule}.end_step__choice": [300, 800]}
    decay = {"name": "linear_decay", "start_val": 0.1, "end_val": 0.0, "start_step": 0, "end_step": 300}
    assert len(searched(search, agent__algorithm__entropy_coef_spec=decay)[2]) == 2
    with pytest.raises(SpecError, match=r"end_step \(300\) after start_step \(900\)"):
        searched({f"{schedule}.start_step__choice": [0, 900]}, agent__algorithm__entropy_coef_spec=decay)


def test_a_variable_that_makes_the_spec_wrong_is_refused_where_it_does():
    core = {"name": "GRU", "hidden_size": "${size}"}
    for search in ({"vars.size__choice": [8, -3]}, {"vars__choice": [{"size": 8}, {"size": -3}]}):
        with pytest.raises(SpecError, match=r"agent.net.core.hidden_size: -3 is below 1"):
            searched(search, vars={"size": 4}, agent__net__core=core)


def test_what_a_listed_value_refers_to_is_the_trials_own():
    schedule = {"name": "LinearToZero", "frame": "${env.max_frame}"}
    search = {"env.max_frame__choice": [1000, 5000], "agent.net.lr_scheduler_spec__choice": [None, schedule]}
    raw, spec, variables = searched(search)
    made, _ = make_raw(raw, {"env.max_frame": 5000, "agent.net.lr_scheduler_spec": variables[1].args[1]})
    assert resolve(made, "x", check_env=False).agent.net.lr_scheduler_spec.frame == 5000
    dumped = resolve(spec.dump(), "x", check_env=False)
    assert dumped.search["agent.net.lr_scheduler_spec__choice"][1]["frame"] == spec.env.max_frame, "for other modes"


def test_a_list_may_be_a_variable():
    _, _, (variable,) = searched({"agent.algorithm.gamma__choice": "${gammas}"}, vars={"gammas": [0.9, 0.99]})
    assert variable.args == (0.9, 0.99)


@pytest.mark.parametrize(
    ("given", "core", "search"),
    [
        ({"core": {"name": "GRU", "hidden_size": 4}}, "${core}", {"vars.core.hidden_size__choice": [8, 16]}),
        ({"size": 4}, {"name": "GRU", "hidden_size": "${vars.size}"}, {"vars.size__choice": [8, 16]}),
        ({"größe": 4}, {"name": "GRU", "hidden_size": "${größe}"}, {"vars.größe__choice": [8, 16]}),
        ({"size": 4, "both": "${size}"}, {"name": "GRU", "hidden_size": "${both}"}, {"vars.size__choice": [8, 16]}),
    ],
)
def test_a_variable_that_something_depends_on_makes_a_difference(given, core, search):
    assert len(searched(search, vars=given, agent__net__core=core)[2]) == 1


def test_a_variable_may_fit_beside_any_other():
    memory = {"name": "SequenceReplay", "sequence_length": "${length}", "burn_in": 8, "carry_every": 2}
    parts = {"agent__algorithm": {"name": "DQN", "training_start_step": 100}, "agent__memory": memory}
    search = {"vars.length__choice": [6, 20], "agent.memory.burn_in__choice": [0, 8]}
    assert len(searched(search, vars={"length": 20}, **parts)[2]) == 2


def test_keys_below_one_that_the_part_lacks_have_no_place_either():
    raw = raw_spec()
    path = "agent.algorithm.clip_eps_spec.start_val"
    made, lost = make_raw(raw, {"agent.algorithm.name": "A2C", path: 0.1})
    assert lost == [path] and "clip_eps_spec" not in made["agent"]["algorithm"]


def test_an_entry_encoder_is_a_part_too():
    memory = {"name": "StrategicMemory", "entry": {"name": "MLP", "hid_layers": [8]}}
    entry = "agent.memory.entry"
    search = {f"{entry}.name__choice": ["MLP", "Transformer"], f"{entry}.window__choice": [2, 4]}
    raw, _, _ = searched(search, agent__memory=memory, agent__net__shared=True)
    made, lost = make_raw(raw, {f"{entry}.name": "Transformer", f"{entry}.window": 2})
    assert made["agent"]["memory"]["entry"] == {"name": "Transformer", "window": 2} and not lost
    _, lost = make_raw(raw, {"agent.memory.name": "OnPolicyBatchReplay", f"{entry}.name": "MLP", f"{entry}.window": 2})
    assert lost == [f"{entry}.name", f"{entry}.window"]
    made, lost = make_raw(raw, {f"{entry}.name": "MLP", f"{entry}.window": 2})
    assert made["agent"]["memory"]["entry"] == {"name": "MLP", "hid_layers": [8]} and lost == [f"{entry}.window"]


def test_a_mapping_without_keys_has_a_label():
    assert label({}) == "{}"


def test_whole_numbers_may_be_written_with_an_exponent():
    (variable,), problems = read_space({"env.num_envs__randint": [1.0, 4.0]})
    assert variable.args == (1, 4) and isinstance(variable.args[0], int) and not problems

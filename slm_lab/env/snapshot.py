"""The state of a Gymnasium env as plain data, so that a run that was killed goes on exactly as it would have.

A state is one tree per layer, from the outermost wrapper down to the env itself. A layer that has `get_state()` and
`set_state(tree)` is asked; of any other every attribute is copied that is plain data, a numpy array or a generator.
A method of the layer's own, as a state machine keeps in an attribute, is saved by its name. One attribute of another
kind (a physics engine, say) makes the env opaque: a guess would resume quietly wrong. Left out are only what is of a
package that draws, functions, modules, classes, Gymnasium's own labels, and a wrapper's `env`, which is the next layer:
a function put in an attribute's place while the env is played isn't there when it goes on.
Not seen: chance drawn from global generators, state in a module or a closure, a simulator behind a C pointer.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as GymSpec
from gymnasium.wrappers.common import PassiveEnvChecker

from slm_lab.env.base import EnvError, own
from slm_lab.lib.types import Tree

HARMLESS_NAMES = {"spec", "metadata", "render_mode", "_saved_kwargs", "_cached_spec", "_metadata"}  # never change
WRAPPERS = (gymnasium.Wrapper, gymnasium.vector.VectorWrapper)
OF_A_GAME = ("pygame.rect", "pygame.math")  # that a world may well reckon with
FOR_THE_EYE = ("pygame", "pyglet", "tkinter", "matplotlib", "PIL", "cv2", "glfw", "OpenGL")  # packages
HARMLESS_TYPES = (types.FunctionType, types.ModuleType, type, GymSpec)
TAG = "__kind__"


class Opaque(Exception):
    """An attribute that can't be saved; its message names it."""


def capture(env: Any) -> Tree:
    """The state of `env` (a gymnasium.Env or VectorEnv) and of every wrapper around it. Raises `Opaque`."""
    encoder = _Encoder()  # one for all: what two layers share would come back as two copies too
    return {"layers": [_capture_layer(layer, encoder) for layer in _layers(env)]}


def restore(env: Any, state: Tree) -> None:
    """Give `env`, built as the saved one was, the state that `capture` found. Raises `EnvError` if built otherwise."""
    layers = list(_layers(env))
    names = [type(layer).__name__ for layer in layers]
    if names != [saved["layer"] for saved in state["layers"]]:
        saved_names = [saved["layer"] for saved in state["layers"]]
        raise EnvError(f"the saved state is of an env made of {saved_names}, this one is made of {names}")
    for layer, saved in zip(layers, state["layers"], strict=True):
        if "own" in saved:
            _set_state(layer, _decode(saved["own"], None))
            continue
        for name, value in saved["attributes"].items():
            current = vars(layer).get(name)
            setattr(layer, name, _decode(value, current))
        for name, method in saved.get("methods", {}).items():
            setattr(layer, name, types.MethodType(getattr(type(layer), method), layer))


def _set_state(layer: Any, state: Tree) -> None:
    try:
        layer.set_state(state)
    except Exception as error:
        raise EnvError(
            f"{type(layer).__name__}.set_state raised {type(error).__name__}: {error}. It is given what get_state() "
            "told, before any reset."
        ) from error


def _layers(env: Any) -> Iterator[Any]:
    while isinstance(env, WRAPPERS):
        yield env
        env = env.env
    yield env


def _capture_layer(layer: Any, encoder: _Encoder) -> Tree:
    name = type(layer).__name__
    if isinstance(
        layer, PassiveEnvChecker
    ):  # no part of the world; told that it has looked, as it compares with a reset
        return {
            "layer": name,
            "attributes": dict.fromkeys(("checked_reset", "checked_step", "checked_data_reuse"), True),
        }
    if all(callable(getattr(type(layer), name, None)) for name in ("get_state", "set_state")):  # not one passed on
        encoder.path = f"{name}.get_state()"
        return {"layer": name, "own": encoder.encode(layer.get_state())}
    attributes, methods = {}, {}
    for key, value in vars(layer).items():
        if _harmless(layer, key, value):
            continue
        if method := _method_name(layer, value):
            methods[key] = method
            continue
        encoder.path = f"{name}.{key}"
        attributes[key] = encoder.encode(value)
    return {"layer": name, "attributes": attributes, "methods": methods}


def _method_name(layer: Any, value: Any) -> str | None:
    """What the layer's class calls it; None where it is no method of the layer's own."""
    if not isinstance(value, types.MethodType) or value.__self__ is not layer:
        return None
    return next((name for name in dir(type(layer)) if getattr(type(layer), name, None) is value.__func__), None)


def _harmless(layer: Any, name: str, value: Any) -> bool:
    if name in HARMLESS_NAMES or isinstance(value, HARMLESS_TYPES):
        return True
    if name == "env" and isinstance(layer, WRAPPERS):
        return True
    if isinstance(value, types.BuiltinFunctionType):  # math.sin, but no list's append
        return isinstance(value.__self__, types.ModuleType)
    return _picture(value)


def _picture(value: Any) -> bool:
    if isinstance(value, (list, tuple)) and value:
        return all(_picture(item) for item in value)
    module = type(value).__module__
    if module in OF_A_GAME:
        return False
    return module.split(".")[0] in FOR_THE_EYE or module.startswith("gymnasium.envs.mujoco.mujoco_rendering")


class _Encoder:
    """Turns attributes into dict, list, tuple, str, int, float, bool, None and numeric arrays.

    The same list, array or generator under two names would come back as two copies that drift apart: opaque too. A
    space may have several names: only its generator is saved, and given back to the space that is there.
    """

    path = ""  # of what is encoded, for messages

    def __init__(self) -> None:
        self._seen: dict[int, tuple[str, Any]] = {}  # by id, so each is held until all are

    def encode(self, value: Any) -> Any:
        if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic)):
            return self._exactly(value)
        if isinstance(value, np.generic):
            return self._scalar(value)
        if isinstance(value, tuple) and type(value) is tuple:
            return tuple(self.encode(item) for item in value)
        if isinstance(value, spaces.Space):
            return {TAG: "space", "rngs": [self._space_rng(space) for space in _with_parts(value)]}
        self._alone(value)
        if type(value) is list:
            return [self.encode(item) for item in value]
        if type(value) is dict:
            return {TAG: "dict", "items": [(self.encode(key), self.encode(item)) for key, item in value.items()]}
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, np.random.Generator):
            return {TAG: "generator", "state": self.encode_plain(value.bit_generator.state)}
        raise Opaque(f"{self.path} ({type(value).__name__})")

    def encode_plain(self, state: Any) -> Any:
        """A bit generator's state: a nested dict of ints, strings and arrays, fresh at each call."""
        return {k: self.encode_plain(v) for k, v in state.items()} if isinstance(state, dict) else state

    def _exactly(self, value: Any) -> Any:
        if type(value) not in (bool, int, float, str, type(None)):  # an enum, say
            raise Opaque(f"{self.path} ({type(value).__name__})")
        return value

    def _scalar(self, value: np.generic) -> Tree:
        if value.dtype.kind not in "biufU" or (value.dtype.kind == "f" and value.dtype.itemsize > 8):
            raise Opaque(f"{self.path} ({value.dtype})")
        return {TAG: "scalar", "dtype": value.dtype.str, "value": value.item()}

    def _array(self, value: np.ndarray) -> Any:
        if type(value) is not np.ndarray or value.dtype.kind in "OV":
            raise Opaque(f"{self.path} ({type(value).__name__} of {value.dtype})")
        if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            return value.copy()
        raw = np.frombuffer(value.tobytes(), np.uint8).copy()  # text and the like, which torch doesn't know
        return {TAG: "bytes", "dtype": value.dtype.str, "shape": list(value.shape), "data": raw}

    def _space_rng(self, space: Any) -> Any:
        rng = space._np_random  # private: the public property would seed it
        return None if rng is None else self.encode_plain(rng.bit_generator.state)

    def _alone(self, value: Any) -> None:
        base = value.base if isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray) else value
        if id(base) in self._seen:
            raise Opaque(f"{self.path} (shares its data with {self._seen[id(base)][0]})")
        self._seen[id(base)] = (self.path, base)


def _with_parts(space: Any) -> Iterator[Any]:
    yield space
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _with_parts(part)


def _decode(value: Any, current: Any) -> Any:
    """The reverse of `_Encoder.encode`; a checkpoint may have made tensors of the arrays."""
    if isinstance(value, (list, tuple)):
        return type(value)(_decode(item, _item(current, i)) for i, item in enumerate(value))
    if not isinstance(value, dict):
        return own(value) if hasattr(value, "__array__") else value
    kind = value[TAG]
    if kind == "dict":
        pairs = [(_decode(key, None), item) for key, item in value["items"]]
        return {key: _decode(item, _item(current, key)) for key, item in pairs}
    if kind == "scalar":
        return np.dtype(value["dtype"]).type(value["value"])
    if kind == "bytes":
        return np.frombuffer(own(value["data"]).tobytes(), value["dtype"]).reshape(value["shape"]).copy()
    if kind == "generator":
        return _generator(value["state"])
    for space, rng in zip(_with_parts(current), value["rngs"], strict=True):
        space._np_random = None if rng is None else _generator(rng)
    return current


def _item(current: Any, key: Any) -> Any:
    """What stands there now; only a space is needed, to get its generator back."""
    try:
        return current[key]
    except (TypeError, LookupError):
        return None


def _generator(state: Tree) -> np.random.Generator:
    state = _arrays(state)
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)


def _arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _arrays(value) for key, value in state.items()}
    return own(state) if hasattr(state, "__array__") else state

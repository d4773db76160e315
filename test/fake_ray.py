"""Ray's calls that rollout workers need, answered in this process: what is played is the same, and it takes no time."""

from __future__ import annotations

import pickle
from typing import Any

import ray


class Reference:
    """Of a value that an actor has made, or of one that was put."""

    def __init__(self, made: Any, actor: Actor | None = None) -> None:
        self.actor = actor
        self.error, self.held = (made, b"") if isinstance(made, Exception) else (None, pickle.dumps(made))


class Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self.actor, self.name = actor, name

    def remote(self, *args: Any) -> Reference:
        """Played at once; whoever dies before it is asked for takes it along."""
        try:
            return Reference(getattr(self.actor.of, self.name)(*map(_value, args)), self.actor)
        except Exception as error:
            told = ray.exceptions.RayTaskError(self.name, "traceback", error)
            return Reference(told, self.actor)


class Actor:
    def __init__(self, of: Any) -> None:
        self.of, self.dead = of, False

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


class Made:
    def __init__(self, cls: type) -> None:
        self.cls = cls

    def options(self, **options: Any) -> Made:
        return self

    def remote(self, *args: Any) -> Actor:
        return Actor(self.cls(*pickle.loads(pickle.dumps(args))))


def _value(given: Any) -> Any:
    if not isinstance(given, Reference):
        return pickle.loads(pickle.dumps(given))  # as it would come out of another process
    if given.error is not None:
        raise given.error
    return pickle.loads(given.held)


class FakeRay:
    exceptions = ray.exceptions
    remote = Made
    put = Reference

    def is_initialized(self) -> bool:
        return True

    def get(self, given: Any) -> Any:
        if isinstance(given, list):
            return [self.get(one) for one in given]
        if given.actor is not None and given.actor.dead:
            raise ray.exceptions.RayActorError()
        return _value(given)

    def wait(self, references: list[Any], **options: Any) -> None:
        """All have ended."""

    def kill(self, actor: Actor) -> None:
        actor.dead = True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2}

    def get_runtime_context(self) -> FakeRay:
        return self

    def get_node_id(self) -> str:
        return "0" * 56

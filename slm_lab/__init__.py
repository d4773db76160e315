"""SLM Lab: the lab for memory in reinforcement learning."""

__version__ = "0.1.0"

"""Package metadata. Exact versions that were tested together are in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

source = Path("slm_lab/__init__.py").read_text(encoding="utf-8").splitlines()
version = next(line.split('"')[1] for line in source if "__version__" in line)

TEST = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "scipy", "ruff", "mypy", "pandas-stubs"]
TEST += ["types-PyYAML", "types-psutil", "h5py"]
# peers of the benchmarks, and the profiler. Not Tianshou 2.0.1: it asks for pandas < 3 and would turn ours back.
BENCH = ["stable-baselines3==2.9.2", "sb3-contrib==2.9.2", "pyinstrument==5.1.3"]
BENCH += ["cpprb==11.0.0; python_version < '3.13'"]  # it has wheels up to 3.12; later ones would need a compiler

setup(
    name="slm_lab",
    version=version,
    description="The lab for memory in reinforcement learning",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["slm_lab", "slm_lab.*"]),
    install_requires=[
        "torch>=2.6",
        "numpy>=2.0",
        "gymnasium>=1.1",
        "pydash>=8.0",
        "pyyaml>=6.0",
        "pydantic>=2.9",
        "ray[tune]>=2.40",
        "optuna>=4.0",
        "pandas>=2.2",
        # plotly 7 needs kaleido 1, which needs an installed Chrome; 6 with kaleido 0.2.1 writes PNGs by itself
        "plotly>=6.1,<7",
        "kaleido==0.2.1",
        "pillow>=10",
        "psutil>=5.9",
        "rich>=13.7",
        "tensorboard>=2.18",
    ],
    extras_require={
        "test": TEST,
        "classic": ["gymnasium[classic-control]"],  # pictures of the classic control envs, for enjoy
        "box2d": ["gymnasium[box2d]"],
        "multiagent": ["pettingzoo>=1.24"],
        "hdf5": ["h5py>=3.10"],
        "bench": BENCH,
    },
    entry_points={"console_scripts": ["slm-lab=slm_lab.cli:main"]},
)

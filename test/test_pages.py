"""The pages are true to the repository: what they link to, run and name is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_specs import ALGORITHMS, raw_spec

from slm_lab.spec.parts import FAMILIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(DOCS.rglob("*.md"))]
WRITTEN_BY_BENCH = DOCS / "benchmarks"  # there once `bench learning` has run
FORBIDDEN = ("/work/", "farm-", "/tmp/", "shared/", "TODO", "localhost")
MAX_PICTURE = 150_000  # bytes
LINK = re.compile(r"\]\(([^)\s]+)\)")
RUN = re.compile(r"run_lab\.py (?:check |show )?(specs/\S+?\.(?:json|ya?ml))(?: (\w+))?")


def prose(page: Path) -> str:
    """A page without its fenced code, where ](...) is no link."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if re.match(r"[a-z]+:", link) or (WRITTEN_BY_BENCH in target.parents and not WRITTEN_BY_BENCH.exists()):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    assert broken_links(page, prose(page)) == []


def test_a_broken_link_is_found() -> None:
    assert broken_links(ROOT / "README.md", "[a](docs/nowhere.md) [b](#nowhere) [c](LICENSE)") == [
        "docs/nowhere.md",
        "#nowhere",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_specs_in_commands_exist(page: Path) -> None:
    from slm_lab.spec.load import load_file

    for file, name in RUN.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / file).is_file(), file
        assert name in ("", "dev", "train", "search", *load_file(ROOT / file)), f"{file} {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_word_of_the_machine_it_was_written_on(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [word for word in FORBIDDEN if word in text] == []


def test_every_part_is_named_in_a_page_written_by_hand() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "spec-reference.md")
    missing = [f"{family} {name}" for family, table in FAMILIES.items() for name in table if f"`{name}`" not in text]
    assert not missing


def test_pictures_are_small_and_used() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in (DOCS / "img").iterdir():
        assert picture.stat().st_size < MAX_PICTURE, picture.name
        assert picture.name in text, f"{picture.name} is in no page"


# ---- the examples of adding_a_part.md --------------------------------------------------------------------------------

ADDING = (DOCS / "adding_a_part.md").read_text(encoding="utf-8")
FENCED = r"```python\n(.*?)```"


def with_examples(copy: Path) -> None:
    """Put all that the page shows into a copy of the lab, where it says."""
    for name, code in re.findall(rf"`(slm_lab/\S+\.py)`:\n\n{FENCED}", ADDING, flags=re.S):
        assert not (copy / name).exists(), f"{name} is there already: the page should show another"
        (copy / name).write_text(code)
    parts = copy / "slm_lab/spec/parts.py"
    for table, line in re.findall(r"In `(\w+)` of `parts\.py`: `(.+?,)`", ADDING):
        text = parts.read_text()
        begun = re.search(rf"^{table} = Registry\(\n    \"\w+\",\n    {{\n", text, flags=re.M)
        assert begun, table
        parts.write_text(f"{text[: begun.end()]}        {line}\n{text[begun.end() :]}")
    wrapper, field, row = re.findall(FENCED, ADDING.partition("## A wrapper")[2].partition("\n## ")[0], flags=re.S)
    for name, mark, code in [
        ("wrappers.py", "WRAPPERS: dict", f"{wrapper}\n\n"),
        ("wrappers.py", '    "prev_reward":', row),
        ("spec.py", "    prev_reward: ", field),
    ]:
        file = copy / "slm_lab/env" / name
        assert file.read_text().count(mark) == 1, mark
        file.write_text(file.read_text().replace(mark, code + mark))


TRAIN = """
import json, sys
from pathlib import Path
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import Session
from slm_lab.spec.validate import resolve
for n, raw in enumerate(json.loads(sys.argv[1])):
    spec = resolve(raw, f"example{n}")
    session = Session(spec, RunDir.create(Path("data"), spec.name, {"name": spec.name, **spec.dump()}, "train"), 0, lambda progress: None)
    session.run()
    print("learned" if session.agent.opt_step else "not learned", flush=True)
"""


def test_the_examples_of_how_to_add_a_part_train(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "slm_lab", tmp_path / "slm_lab", ignore=shutil.ignore_patterns("__pycache__"))
    with_examples(tmp_path)
    sections = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", ADDING, flags=re.S)]
    specs = []
    for section in sections:
        ((name, keys),) = section.items()
        raw = raw_spec(**{f"agent__{name}" if name != "env" else "env": keys})
        raw["env"] |= {"num_envs": 4, "max_frame": 400}
        if keys["name"] == "FreshReplay":
            raw["agent"]["algorithm"] = ALGORITHMS["DQN"] | {"training_start_step": 64}
        if keys["name"] == "StrategicMemory":
            raw["agent"]["algorithm"]["time_horizon"] = 2  # episodes
            raw["agent"]["net"]["shared"] = True
        specs.append(raw)
    assert len(specs) == len(re.findall(r"^## (?:A|An) ", ADDING, flags=re.M)) - 1, "the auxiliary has no code"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRAIN, json.dumps(specs)],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.split("\n")[:-1] == ["learned"] * len(specs), done.stderr

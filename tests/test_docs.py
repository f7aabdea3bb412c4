"""What the documentation says: its links lead somewhere, its examples run."""

import re
from pathlib import Path

import pytest

from fusion.hierarchy import configurations_of, parts_of
from fusion.methods import METHODS
from orchestrator.system import load_systems
from tests.fusion.pools import TREE, labelled, make_pool, rng

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_files_that_are_named_exist(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    named = re.findall(r"`((?:orchestrator|branches|scoring|fusion|cluster|tests|docs)/[\w/.]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_system_file_shown_can_be_loaded_and_the_examples_of_extending_run(tmp_path, monkeypatch):
    shown = [block for page in PAGES for block in blocks(page, "yaml") if "subsystems:" in block]
    assert len(shown) >= 3
    for text in shown:
        (tmp_path / "system.yaml").write_text(text)
        assert load_systems([str(tmp_path / "system.yaml")], backbone=None)[0].subsystems
    monkeypatch.setitem(METHODS, "better_half", None)  # an example's, which goes again
    names: dict[str, object] = {"__name__": "extending"}
    for block in blocks(ROOT / "docs" / "extending.md", "python"):
        exec(compile(block, "docs/extending.md", "exec"), names)
    found = METHODS["better_half"].search(configurations_of(labelled(make_pool()), TREE), parts_of(TREE), rng())
    assert found[""].sum() == pytest.approx(1)

from pathlib import Path

from branches.spec import BranchSpec
from orchestrator.settings_table import settings_page
from tests.commands import tutti_here

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_what_the_classes_say():
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "tutti show --settings > docs/settings.md"
    shown = tutti_here("show", "--settings")
    assert (shown.exit_code, shown.stdout) == (0, settings_page())


def test_every_setting_of_a_branch_has_a_default_and_a_meaning():
    rows = dict(line.strip("| ").split(" | ", 1) for line in settings_page().splitlines() if line.startswith("| `"))
    for name in BranchSpec.model_fields:
        assert any(key.startswith(f"`branch.{name}") for key in rows)
    assert rows["`branch.training.average`"] == "0.0 | decay of the moving average of the weights; 0 keeps the last"
    assert rows["`branch.strategy: head`"].endswith("Pooling and projection are trained, the backbone stays as it was.")
    assert "`fitted`" in rows["`detector.density.weight`"]

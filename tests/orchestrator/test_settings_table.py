from pathlib import Path

from tests.commands import tutti_here


def test_the_page_of_all_settings_is_what_their_classes_say():
    shown = tutti_here("show", "--settings")
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert shown.stdout == page.read_text(encoding="utf-8"), "tutti show --settings > docs/settings.md"
    assert shown.exit_code == 0

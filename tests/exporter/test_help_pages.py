"""docs/commands.md is what the commands say of themselves."""

from __future__ import annotations

from gptport.help_pages import PAGE, page


def test_the_page_is_what_the_commands_say():
    assert PAGE.read_text() == page(), "run python -m gptport.help_pages"

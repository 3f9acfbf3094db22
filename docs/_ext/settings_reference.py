"""``{settings}``: the environment variables, out of the class that reads them."""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

from generated import Generated, as_markdown, code, table
from pharox.settings import Settings


class SettingsTable(Generated):
    """Describes each variable."""

    def markdown(self) -> str:
        """Return a row for each field of the settings."""
        prefix = Settings.model_config["env_prefix"]
        meanings = ModuleAnalyzer.for_module(Settings.__module__).find_attr_docs()
        rows = [
            (
                code(f"{prefix}{name}".upper()),
                as_markdown(" ".join(meanings[Settings.__name__, name])),
            )
            for name in Settings.model_fields
        ]
        return table(("variable", "meaning"), rows)


def setup(app: Sphinx) -> dict[str, bool]:
    """Give Sphinx the directive."""
    app.add_directive("settings", SettingsTable)
    return {"parallel_read_safe": True}

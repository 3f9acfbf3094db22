"""How the documentation site is built: `scripts/docs` calls Sphinx with this.

The pages are the Markdown files beside it, as GitHub shows them too. What the code
says already is taken from the code, by the extensions in ``_ext``. Nothing is fetched.
"""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "pharox"
author = "the pharox authors"
version = release = version_of("pharox")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "commands_reference",
    "complete_llms",
    "events_reference",
    "public_names",
    "schema_reference",
    "settings_reference",
]
exclude_patterns = ["_build", "examples"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "exclude-members": "model_post_init",
    # Up to these: what a class has from them is said there.
    "inherited-members": "ABC, AsyncSession, BaseClient, BaseException, BaseModel, Enum, Generic, "
    "IAsyncStorage, IStorage, PharoxError, Session, int, str, tuple",
}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_google_docstring = False
napoleon_use_rtype = False

autodoc_type_aliases = {
    "Command": "pharox.storage.requests.Command",
    "Event": "pharox.events.types.Event",
}
toc_object_entries_show_parents = "hide"

nitpick_ignore_regex = [
    # Types of other packages have no pages here, and their own sites are not asked.
    ("py:.*", r"(?!pharox\b|projections\b).*"),
    # What nobody imports, though the signature of something public names it.
    ("py:.*", r"pharox\.(events\.types|manager\.leasing|ledger\.subscriptions\.reader)\..*"),
    ("py:.*", r"pharox\.manager\.holding\..*"),
    ("py:.*", r"pharox\.manager\.pool_handle\.M"),
    ("py:.*", r"pharox\.fleet\.(ledgers\.[SM]_co|merging\.T|fleets\.T|moving\.End)"),
    ("py:.*", r"pharox\.storage\.moving(\..*)?"),
    ("py:.*", r"pharox\.history\.finding\.Leases"),
    ("py:.*", r"pharox\.integrations\.testing\.lab\.Authority"),
    ("py:.*", r"pharox\.models\.responses\.HasStatus(Code)?"),
    ("py:.*", r"pharox\.storage\.postgres\.\w+\..*"),
]

html_theme = "furo"
html_title = f"pharox {release}"
html_extra_path = ["llms.txt"]
html_show_copyright = False

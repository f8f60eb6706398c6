"""The site of the docs, by Sphinx: these pages, and the API reference read out of the docstrings."""

from __future__ import annotations

import re
import sys
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import poisonkit.experiments.reproduce  # noqa: F401, which loads every room

project = "poisonkit"
author = "The poisonkit authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
templates_path = ["_templates"]
exclude_patterns = ["results"]
html_theme = "furo"
html_title = "poisonkit"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
default_role = "literal"  # one backtick in a docstring is code, as on the other pages

add_module_names = False
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "no-value": True,
    "special-members": "__call__",
}
autodoc_mock_imports = ["lightning", "transformers", "ray"]  # the pages of the hooks need none of them
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100

# A link that leads nowhere is a warning, and so an error. Types of others in signatures are not looked up, nor those
# that no page shows: parts which only a method's own code makes.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!poisonkit).*"),
    (r"py:class", r"poisonkit\.(config\.T|train\.loop\.Checkpoint|models\.predict\.Predictor)"),
    (r"py:class", r"poisonkit\.(attacks\.targeted\.Case|defenses\.guards\.\w+\.(TwoNetworks|Blocking))"),
    (r"py:class", r"poisonkit\.defenses\.certified\.ensemble\.(Bagged|HashBagged|RunOff|Temporal)"),
    (r"py:class", r"poisonkit\.experiments\.(comparison\.Work|findings\.Finding|lab\.Lab|reproduce\.\w+\.Setting)"),
]

COLUMN = re.compile(r"(\S+(?:,? \S+)*) {2,}(\S.*)")


def constants(app: Sphinx) -> None:
    """Autodoc reads the comment above a constant where it is made; here the room that exports it has it too."""
    names = [name for name in sys.modules if name.startswith("poisonkit") and not name.startswith("poisonkit._")]
    found = {name: ModuleAnalyzer.for_module(name) for name in names}
    made = [(home, *where, text) for home in names for where, text in found[home].find_attr_docs().items()]
    for room in names:
        public = getattr(sys.modules[room], "__all__", ())
        for home, scope, name, text in made:
            if home.startswith(room) and not scope and name in public:
                found[room].attr_docs["", name] = text


def tables(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings say what fields and arguments are in two aligned columns; a page shows them as a list of terms."""
    text: list[str] = []
    for block in "\n".join(lines).split("\n\n"):
        rows = block.split("\n")
        first = COLUMN.fullmatch(rows[0])
        if first is None:
            text += [*rows, ""]
        elif re.search(r"\S {2,}", first[2]):  # of more columns: as it stands
            text += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            for row in rows:
                term = COLUMN.fullmatch(row)
                text += [f"``{term[1]}``", f"    {term[2]}"] if term else [f"    {row.strip()}"]
            text.append("")
    lines[:] = text


def once(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """A name is shown in the page of the room it comes from, and there alone."""
    pages = {page.removeprefix("api/") for page in app.env.found_docs if page.startswith("api/")}
    page = app.env.docname.removeprefix("api/")
    home = getattr(obj, "__module__", None) or ""
    while home and home not in pages:
        home = home.rpartition(".")[0]
    return True if home and home != page else None


def short(app: Sphinx, what: str, name: str, obj: Any, options: Any, given: str | None, returned: str | None) -> Any:
    """A default of many fields is named in a signature, and not written out."""
    if given and len(given) > 200:
        given = re.sub(r"= (\w+)\((?:[^()]|\([^()]*\))*\)", r"= \1(...)", given)
    return given, returned


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", short)
    app.connect("builder-inited", constants)
    app.connect("autodoc-process-docstring", tables)
    app.connect("autodoc-skip-member", once)

"""Texts and pages that are filled in: a template lies beside the module that fills it."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

MARKUP = ".html.j2"  # whose values are escaped


def fill(package: str, template: str, **values: Any) -> str:
    """Return a template of a package with these values; one that it names and that is missing is an error."""
    return _environment(package, template.endswith(MARKUP)).get_template(template).render(values)


@cache
def _environment(package: str, escapes: bool) -> Environment:
    return Environment(
        loader=PackageLoader(package, ""),
        undefined=StrictUndefined,
        autoescape=escapes,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

"""The line between markup and text."""

from __future__ import annotations

import html


class Html(str):
    """Markup that may go into a page as it is. Every other string is text.

    Joining or formatting an Html gives a plain string again, so a block put together by hand is shown
    as text rather than trusted.
    """

    __slots__ = ()


def escape(value: object) -> str:
    """``value`` as markup: an Html as it is, anything else as escaped text."""
    return value if isinstance(value, Html) else html.escape(str(value))

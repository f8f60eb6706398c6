"""What a run shows: tables for the terminal, and the blocks of one self-contained HTML page.

Everything here is a pure function from values to text or bytes; the caller writes the files. A block
is ``Html``; any other string is text, and is escaped wherever it lands in a page.
"""

from poisonkit.report.charts import Series, Spot, bar_chart, line_chart, scatter_chart
from poisonkit.report.markup import Html
from poisonkit.report.page import Headline, Section, cards, code, details, figure, page
from poisonkit.report.pictures import picture_grid, png
from poisonkit.report.tables import csv_text, html_table, percent, text_table

__all__ = [
    "Headline",
    "Html",
    "Section",
    "Series",
    "Spot",
    "bar_chart",
    "cards",
    "code",
    "csv_text",
    "details",
    "figure",
    "html_table",
    "line_chart",
    "page",
    "percent",
    "picture_grid",
    "png",
    "scatter_chart",
    "text_table",
]

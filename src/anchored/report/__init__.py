"""Results as people read them: tables, plots, one self-contained HTML page."""

from anchored.report.demo_page import write_report
from anchored.report.tables import finding, markdown_table, rich_table

__all__ = ["finding", "markdown_table", "rich_table", "write_report"]

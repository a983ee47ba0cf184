"""Present results to people: tables, plots, and self-contained HTML pages."""

from anchored.report.demo_page import write_report
from anchored.report.tables import finding, markdown_table, rich_table

__all__ = ["finding", "markdown_table", "rich_table", "write_report"]

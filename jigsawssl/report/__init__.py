"""What a run leaves behind: files and tables here; figures in ``jigsawssl.report.figures``, which needs matplotlib."""

from jigsawssl.report.files import format_table, write_bytes, write_csv, write_json

__all__ = ["format_table", "write_bytes", "write_csv", "write_json"]

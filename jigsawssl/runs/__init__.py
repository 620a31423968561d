"""What a run leaves behind: files and tables here; its folder in ``jigsawssl.runs.folder``."""

from jigsawssl.runs.files import format_table, write_bytes, write_csv, write_json

__all__ = ["format_table", "write_bytes", "write_csv", "write_json"]

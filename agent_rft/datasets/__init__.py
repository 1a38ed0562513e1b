"""Rows: read and written, validated, split, leak-checked; and the generated filings that the running example asks about."""

"""OpenTelemetry in and out: traces of any agent as job cards, job cards as traces. Pure: bytes and values in, values and bytes out."""

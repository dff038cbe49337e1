"""Sessions and prompt caches on disk, opened with `SessionStore`; docs/session-format.md describes the files."""

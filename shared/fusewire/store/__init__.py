"""The SQL store: engine, tables, views, and the read side."""

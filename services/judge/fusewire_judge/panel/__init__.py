"""The panel: which members to call, how long to wait for them, and which answers count. Pure."""

"""The console: the web page of analysts and operators.

It reads the views of `fusewire_v1`, and asks ingest's API for all else with the visitor's own key.
So it has no tables, no bus and no keys of its own, and shows nobody what the API would not.
"""

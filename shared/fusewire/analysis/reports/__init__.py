"""The reports of `fusewire report` and of the console: rows of views in, dataclasses out. Pure.

A row is a mapping by the names of columns. Rates have their n and their 95 % interval, and no value
under LEAST_N; costs that are not known are None, and never part of a sum.
"""

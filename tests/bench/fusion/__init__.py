"""How well the strategies fuse, on simulated models, attacks and recorded answers.

Run it by `make bench-fusion`.
"""

"""How well the strategies fuse: simulated members and judges, attacks, recorded answers. `make bench-fusion`."""

"""The checks of `deploy/`: everything that can be known without a cluster."""

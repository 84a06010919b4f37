"""Judge: collects candidates, decides, asks for further rounds, stores outcomes. It never calls a model."""

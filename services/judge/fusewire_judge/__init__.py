"""Judge: collects candidates, decides, asks for rounds, stores outcomes. It calls no model."""

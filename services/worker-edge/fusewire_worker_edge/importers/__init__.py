"""Convert model files of other formats into folders that the engine loads."""


class ModelImportError(Exception):
    """A model cannot be converted. The message says why."""

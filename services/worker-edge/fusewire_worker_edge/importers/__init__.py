"""Turn model files of other formats into folders that the engine loads."""


class ModelImportError(Exception):
    """The file cannot be converted. The message says what is in the way."""

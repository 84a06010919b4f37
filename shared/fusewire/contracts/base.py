"""What every message on the bus has in common: a version, tolerance, and one way to fail."""

from typing import ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

Residency = Literal["any", "edge-only"]
Priority = Literal["high", "normal", "low"]
Tier = Literal["edge", "remote"]
Mode = Literal["best-of", "merge", "debate", "verify"]

PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
MODES: tuple[Mode, ...] = get_args(Mode)


class ContractError(ValueError):
    """A message that does not fit its contract. `path` says where, `reason` why."""

    def __init__(self, contract: str, path: str, reason: str) -> None:
        self.contract = contract
        self.path = path
        self.reason = reason
        super().__init__(f"{contract}: {path}: {reason}")


class Part(BaseModel):
    """A frozen part of a message. Unknown fields are ignored, so old code reads new messages."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Wire(Part):
    """A whole message. It carries a version; a missing or unknown one is refused."""

    contract: ClassVar[str]

    v: Literal[1] = 1

    def encode(self) -> bytes:
        """Serialise to compact UTF-8 JSON."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, data: bytes | str) -> Self:
        """Read a message.

        Raises:
            ContractError: it is not JSON, a field is missing or of the wrong type, or
                this code does not know the version. Names the first such field.
        """
        try:
            message = cls.model_validate_json(data)
        except ValidationError as exc:
            raise contract_error(cls.contract, exc) from None
        if "v" not in message.model_fields_set:
            raise ContractError(cls.contract, "$.v", "missing; this code reads version 1")
        return message


def contract_error(contract: str, exc: ValidationError) -> ContractError:
    """Turn pydantic's first error into a path and a reason, without echoing the input."""
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    path = "$" + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
    return ContractError(contract, path, str(first["msg"]))

"""Checks of the arguments of modules."""


def integer(name: str, value: object, *, at_least: int = 1) -> int:
    """`value` as it is, where it is an integer of at least `at_least`.

    Raises:
        ValueError: it is not; the message names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}: got {value!r}, want an integer >= {at_least}")
    return value

"""Numbers as the page writes them."""

from __future__ import annotations

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SAME = 5e-5  # a relative change that two decimals of a percentage do not show


def number(value: float, digits: int = 2) -> str:
    """With so many digits: `0.31`, `4.3 × 10⁻⁶`."""
    rounded = f"{value:.{digits - 1}e}"
    if value == 0 or 0.01 <= abs(value) < 100_000:
        return f"{float(rounded):g}"
    mantissa, _, exponent = rounded.partition("e")
    power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return power if float(mantissa) == 1 else f"{mantissa} × {power}"


def share(value: float) -> str:
    """Of a whole: `65.6%`."""
    return f"{value:.1%}"


def change(value: float) -> str:
    """Relative to what it was: `+15.50%`."""
    return f"{value:+.2%}".replace("-", "−") if abs(value) >= _SAME else "no change"

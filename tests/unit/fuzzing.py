"""Damaged copies of real input."""

from __future__ import annotations

from hypothesis import strategies as st

_TEXTS = (
    *("\0", "\n", " ", "-", ",", "=", "/", "..", "[", "]", "://"),  # what separates one thing from another
    *("%", "%2C", "%0a", "\\", "\\040", "//deleted"),  # what stands for something else
    *("\u2028", "\u0663", "9" * 5000, "1_0", "+1", "1e9"),  # what int() and others may see as more than it is
)
_PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([*(text.encode() for text in _TEXTS), b"\xff", b"\xed\xa0\x80"]),
)


@st.composite
def damaged(draw: st.DrawFn, *samples: bytes) -> bytes:
    """One of the samples after up to four changes: bits flipped, pieces put in, cut out, doubled, the end cut off."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        match draw(st.integers(0, 4)):
            case 0 if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case 1:
                data[start:end] = draw(_PIECES)
            case 2:
                del data[start:end]
            case 3:
                data[start:start] = data[start:end]
            case _:
                del data[start:]
    return bytes(data)


def damaged_text(*samples: str) -> st.SearchStrategy[str]:
    """The same for text; what is no UTF-8 any more becomes lone surrogates, as from the file system."""
    return damaged(*(sample.encode() for sample in samples)).map(lambda raw: raw.decode("utf-8", "surrogateescape"))

"""Where the records of a CSV file begin, as pandas has it: a line break in quotes is none, a line of blanks no record."""

import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ppl_vae.errors import DataError

BLOCK = 2**22
"""Bytes that are looked through at a time."""
LONGEST = 2**26
"""Bytes of a record: what is longer has lost a quote."""


def records(file: BinaryIO) -> Iterator[tuple[bytes, np.ndarray, bytes]]:
    """Blocks of whole records: the bytes, the places after the end of each record, and the last record.

    Raises: DataError for a record that is longer than `LONGEST` or not finished.
    """
    held, place = b"", 0
    while True:
        more = file.read(BLOCK)
        block = held + more
        ends, inside = _ends(block, not more)
        if not more and inside:
            raise DataError(f"got a quote in the record at byte {place} that is never closed, expected its other quote")
        if not more and block and (not len(ends) or ends[-1] < len(block)):
            ends = np.append(ends, len(block))
        stop = int(ends[-1]) if len(ends) else 0
        if stop:
            starts = np.concatenate([[0], ends[:-1]])
            full = ~_blank(block, starts, ends)
            final = block[starts[full][-1] : ends[full][-1]] if full.any() else b""
            yield block[:stop], ends[full], final
        held, place = block[stop:], place + stop
        if len(held) > LONGEST:
            raise DataError(f"got a record of more than {LONGEST} bytes at byte {place}: is a quote never closed?")
        if not more:
            return


def _ends(block: bytes, last: bool) -> tuple[np.ndarray, bool]:
    r"""The places after the line breaks (\n, \r\n or \r) outside quotes, of bytes that begin with a record.

    Args:
        last: nothing follows; else a \r at the end may be half a line break.

    Returns: the places, and whether the block ends within quotes.
    """
    a = np.frombuffer(block, np.uint8)
    breaks = a == ord("\n")
    if b"\r" in block:
        alone = a == ord("\r")
        alone[:-1] &= ~breaks[1:]
        if not last:
            alone[-1:] = False
        breaks |= alone
    ends = np.flatnonzero(breaks) + 1
    if b'"' not in block:
        return ends, False
    quotes = np.flatnonzero(a == ord('"'))
    opening = quotes[::2]
    # a quote opens a field at its beginning only, or is the second of two that stand for one
    before = a[opening - 1]
    known = (opening == 0) | np.isin(before, np.frombuffer(b',\n\r"', np.uint8))
    if not known.all():  # blanks before it, or a quote that is text: slower, field by field
        fields = list(QUOTED.finditer(block))
        quotes = np.array([place for field in fields for place in field.span()], int)
        quotes = quotes[:-1] if fields and not fields[-1]["closing"] else quotes
    return ends[np.searchsorted(quotes, ends) % 2 == 0], len(quotes) % 2 == 1


QUOTED = re.compile(rb'(?<![^,\r\n]) *+"[^"]*+(?:""[^"]*+)*+(?P<closing>"?)')
"""A field in quotes; a quote elsewhere in a field is text."""


def _blank(block: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which records are lines of blanks, which no reader of CSV counts."""
    odd = np.isin(np.frombuffer(block, np.uint8)[starts], np.frombuffer(b" \t\r\n", np.uint8))
    places = np.flatnonzero(odd)
    odd[places] = [not block[starts[i] : ends[i]].strip() for i in places.tolist()]
    return odd

"""Bitmaps of blktap and Microsoft: most significant bit first."""

from collections.abc import Iterator

_REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def reversed_bits(raw: bytes) -> bytes:
    """A bitmap of blktap 0.1, whose bits count from the least significant one, in our order.

    >>> reversed_bits(bytes([0b00000111])) == bytes([0b11100000])
    True
    """
    return raw.translate(_REVERSED)


def test_bit(bits: bytes | bytearray, index: int) -> bool:
    """Whether bit `index` is set; bits behind the end are clear."""
    byte = index >> 3
    return byte < len(bits) and bool(bits[byte] & (0x80 >> (index & 7)))


def set_bits(bits: bytearray, first: int, count: int) -> None:
    """Sets `count` bits from `first`."""
    end = first + count
    while first < end and first & 7:
        bits[first >> 3] |= 0x80 >> (first & 7)
        first += 1
    while end > first and end & 7:
        end -= 1
        bits[end >> 3] |= 0x80 >> (end & 7)
    if end > first:
        bits[first >> 3 : end >> 3] = b"\xff" * ((end - first) >> 3)


def clear_bits(bits: bytearray, first: int, count: int) -> None:
    """Clears `count` bits from `first`."""
    for index in range(first, first + count):
        bits[index >> 3] &= ~(0x80 >> (index & 7)) & 0xFF


def all_set(bits: bytes | bytearray, count: int) -> bool:
    """Whether the first `count` bits are all set."""
    whole, rest = divmod(count, 8)
    if bits[:whole] != b"\xff" * whole:
        return False
    mask = 0xFF00 >> rest & 0xFF
    return rest == 0 or (len(bits) > whole and bits[whole] & mask == mask)


def count_set(bits: bytes | bytearray) -> int:
    """Number of set bits."""
    return int.from_bytes(bits, "big").bit_count()


def last_set(bits: bytes | bytearray) -> int:
    """Index of the last set bit, or -1."""
    body = bits.rstrip(b"\0")
    if not body:
        return -1
    low = body[-1]
    return len(body) * 8 - 1 - ((low & -low).bit_length() - 1)


def runs(bits: bytes | bytearray, count: int) -> Iterator[tuple[bool, int, int]]:
    """(set, first, length) of each run within the first `count` bits; missing bits are clear.

    >>> list(runs(bytes([0b11100000]), 8))
    [(True, 0, 3), (False, 3, 5)]
    """
    value = int.from_bytes(bytes(bits).translate(_REVERSED), "little")
    value &= (1 << count) - 1
    position = 0
    while position < count:
        if value & 1:
            length = ((~value) & (value + 1)).bit_length() - 1
            yield True, position, length
        elif value == 0:
            yield False, position, count - position
            return
        else:
            length = (value & -value).bit_length() - 1
            yield False, position, length
        value >>= length
        position += length


def set_runs(bits: bytes | bytearray, count: int) -> Iterator[tuple[int, int]]:
    """(first, length) of each run of set bits."""
    for present, first, length in runs(bits, count):
        if present:
            yield first, length


def unpack_flags(bits: bytes, count: int) -> bytearray:
    """A byte (0 or 1) for each of the first `count` bits.

    >>> list(unpack_flags(bytes([0b10100000]), 4))
    [1, 0, 1, 0]
    """
    digits = format(int.from_bytes(b"\1" + bits, "big"), "b")[1 : 1 + count]
    return bytearray(digits.encode().translate(_DIGIT_TO_FLAG)).ljust(count, b"\0")


def pack_flags(flags: bytes | bytearray, length: int) -> bytes:
    """The inverse of `unpack_flags`, in `length` bytes; flags beyond that are left out.

    >>> pack_flags(bytes([1, 0, 1]), 2).hex()
    'a000'
    """
    digits = flags.translate(_FLAG_TO_DIGIT)[: length * 8].ljust(length * 8, b"0")
    return int(digits, 2).to_bytes(length, "big")


_DIGIT_TO_FLAG = bytes(1 if value == ord("1") else 0 for value in range(256))
_FLAG_TO_DIGIT = bytes(ord("1") if value else ord("0") for value in range(256))

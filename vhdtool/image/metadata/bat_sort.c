/* Sorts the places of a BAT: a million of them in milliseconds. order.py is the only caller. */
#include <stddef.h>
#include <stdint.h>

enum { DIGITS = 4, VALUES = 256 };

/* `other` has room for as many. An even number of passes ends where it began. */
void order_sort(uint32_t *places, uint32_t *other, size_t count)
{
    static const int shifts[DIGITS] = {0, 8, 16, 24};
    size_t starts[DIGITS][VALUES] = {{0}};
    for (size_t n = 0; n < count; n++)
        for (int digit = 0; digit < DIGITS; digit++)
            starts[digit][places[n] >> shifts[digit] & (VALUES - 1)]++;
    for (int digit = 0; digit < DIGITS; digit++) {
        size_t before = 0;
        for (int value = 0; value < VALUES; value++) {
            size_t here = starts[digit][value];
            starts[digit][value] = before;
            before += here;
        }
        for (size_t n = 0; n < count; n++)
            other[starts[digit][places[n] >> shifts[digit] & (VALUES - 1)]++] = places[n];
        uint32_t *swap = places;
        places = other;
        other = swap;
    }
}

/* Finds the data of a request in the file. */
#include "fast_path.h"

/*
 * PRESENT: the data is at byte *at of the file. ABSENT: it reads as zeros. TO_ALLOCATE: a write to
 * an absent *block. LEFT_TO_PYTHON: Python serves it, and checks its bounds too.
 */
enum found layout_find(const struct layout *l, uint64_t offset, uint32_t length, int write,
                       uint64_t *at, uint64_t *block)
{
    if (!length || length > LONGEST || ((offset | length) & (SECTOR - 1)) ||
        offset > l->size || length > l->size - offset || (write && !l->writable))
        return LEFT_TO_PYTHON;
    if (!l->block_bytes) {
        *at = offset;
        return PRESENT;
    }
    *block = offset / l->block_bytes;
    uint64_t within = offset % l->block_bytes;
    if (within + length > l->block_bytes || *block >= l->blocks)
        return LEFT_TO_PYTHON;
    /* The entry first: the flag of a new block is set before it. */
    uint32_t entry = __atomic_load_n(&l->bat[*block], __ATOMIC_ACQUIRE);
    if (entry == UNUSED) {
        if (!write)
            return l->zeros ? ABSENT : LEFT_TO_PYTHON;
        return l->whole ? TO_ALLOCATE : LEFT_TO_PYTHON;
    }
    if (!__atomic_load_n(&l->full[*block], __ATOMIC_ACQUIRE))
        return LEFT_TO_PYTHON;
    *at = (uint64_t)entry * SECTOR + l->bitmap_bytes + within;
    return PRESENT;
}

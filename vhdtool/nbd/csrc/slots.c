/* Memory for requests: one slot each, aligned, with a limit for all clients together. */
#include "fast_path.h"
#include <sys/mman.h>

/* Bytes from slot to slot: more than they hold, so that they do not share the sets of a cache. */
#define STRIDE (LONGEST + (68u << 10))
#define SMALL_STRIDE (LARGE + (4u << 10))
#define LARGE_MEMORY ((size_t)SLOTS * STRIDE)
#define ALL_MEMORY (LARGE_MEMORY + (size_t)SLOTS * SMALL_STRIDE)
#define HUGE_AFTER (32ull << 20) /* bytes that a client has moved before it gets huge pages */

static _Atomic int64_t used;  /* bytes of memory that the slots of all clients use */
static _Atomic int64_t limit; /* how many there may be */

void slots_limit(int64_t bytes) { atomic_store(&limit, bytes); }

int slots_open(struct session *s)
{
    s->memory = mmap(NULL, ALL_MEMORY, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->memory == MAP_FAILED)
        return 0;
    /* With huge pages one byte would take megabytes. */
    madvise(s->memory, ALL_MEMORY, MADV_NOHUGEPAGE);
    for (int n = 0; n < SLOTS; n++)
        s->spare[s->spares++] = SLOTS - 1 - n;
    return 1;
}

void slots_close(struct session *s)
{
    munmap(s->memory, ALL_MEMORY);
    atomic_fetch_sub(&used, s->counted);
}

int slots_can_take(const struct session *s)
{
    return s->spares && !s->starved && s->taken + LONGEST <= MOST_IN_FLIGHT;
}

static int is_left(uint32_t more)
{
    return atomic_load_explicit(&used, memory_order_relaxed) + more <=
           atomic_load_explicit(&limit, memory_order_relaxed);
}

static void count(struct session *s, struct slot *slot, int large, uint32_t bytes)
{
    uint32_t now = large && s->huge ? LONGEST : bytes;
    if (now <= slot->touched[large])
        return;
    atomic_fetch_add(&used, now - slot->touched[large]);
    s->counted += now - slot->touched[large];
    slot->touched[large] = now;
}

/* Counts the first `bytes` of a slot's memory as used. */
void slots_touch(struct session *s, struct slot *slot, uint32_t bytes)
{
    count(s, slot, slot->length > LARGE, bytes);
}

/* Gives the memory of all slots back to the kernel; none of them may be in use. */
void slots_release(struct session *s)
{
    madvise(s->memory, ALL_MEMORY, MADV_DONTNEED);
    for (int n = 0; n < SLOTS; n++)
        s->slots[n].touched[0] = s->slots[n].touched[1] = 0;
    atomic_fetch_sub(&used, s->counted);
    s->counted = 0;
}

/*
 * Whether the next slot may hold so many bytes, of which `here` have arrived. Where all clients
 * together use too much memory, one small request at a time is served here: 1 yes, 0 not before
 * others of this client have ended, -1 not here.
 */
int slots_afford(struct session *s, uint32_t length, uint32_t here)
{
    struct slot *slot = &s->slots[s->spare[s->spares - 1]];
    int large = length > LARGE;
    if (large && !s->huge && s->counters[0] + s->counters[1] > HUGE_AFTER) {
        /* Memory that has been touched already stays in small pages: it begins anew. */
        if (s->taken) {
            s->starved = 1;
            return 0;
        }
        slots_release(s);
        madvise(s->memory, LARGE_MEMORY, MADV_HUGEPAGE);
        s->huge = 1;
    }
    if (length > slot->touched[large] && !is_left(length - slot->touched[large])) {
        if (s->taken) {
            s->starved = 1;
            return 0;
        }
        slots_release(s);
        if (large && !is_left(length))
            return -1;
    }
    count(s, slot, large, here);
    return 1;
}

struct slot *slots_take(struct session *s, uint16_t command, uint64_t cookie, uint64_t offset,
                        uint32_t length)
{
    struct slot *slot = &s->slots[s->spare[--s->spares]];
    slot->command = command;
    slot->cookie = cookie;
    slot->offset = offset;
    slot->length = length;
    /* Large requests are in huge pages, which a disk reads into in one piece: a quarter faster. */
    size_t n = (size_t)(slot - s->slots);
    slot->data = length > LARGE ? s->memory + n * STRIDE : s->memory + LARGE_MEMORY + n * SMALL_STRIDE;
    s->taken += length;
    return slot;
}

void slots_give_back(struct session *s, struct slot *slot)
{
    s->taken -= slot->length;
    s->starved = 0;
    s->spare[s->spares++] = (int)(slot - s->slots);
}

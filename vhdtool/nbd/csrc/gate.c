/* Lets requests begin, and counts those in flight. */
#include "fast_path.h"

void gate_set(struct gate *g, enum mode mode)
{
    atomic_store(&g->mode, mode);
    atomic_fetch_add(&g->generation, 1);
}

int gate_serves(struct gate *g, int64_t now)
{
    return atomic_load_explicit(&g->mode, memory_order_relaxed) == SERVE &&
           now <= atomic_load_explicit(&g->deadline, memory_order_relaxed);
}

/*
 * Counts the request before it checks the mode: Python changes mode and generation first, and then
 * waits until no request is in flight. So none is served from an image that is closed.
 */
int gate_enter(struct gate *g, uint32_t generation, int64_t now)
{
    atomic_fetch_add(&g->inside, 1);
    if (atomic_load(&g->mode) == SERVE && atomic_load(&g->generation) == generation &&
        now <= atomic_load_explicit(&g->deadline, memory_order_relaxed))
        return 1;
    gate_leave(g);
    return 0;
}

void gate_leave(struct gate *g) { atomic_fetch_sub(&g->inside, 1); }

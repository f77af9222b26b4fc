/* A histogram of latencies: of the first request after each wait for the client. */
#include "fast_path.h"

void latency_begin(struct latency *l, int64_t now)
{
    if (!l->began)
        l->began = now;
}

void latency_end(struct latency *l)
{
    if (!l->began)
        return;
    uint64_t took = (uint64_t)(clock_ns() - l->began);
    int bucket = 0;
    while (bucket < l->bounds && took > l->bound[bucket])
        bucket++;
    l->counts[bucket]++;
    l->total += took;
    l->began = 0;
}

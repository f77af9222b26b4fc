/* The loop over one client's requests. */
#include "fast_path.h"
#include <sched.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LONELY 16 /* after so many requests one by one, the next one bypasses the queue */

int64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* A request has left the gate: it is replied to, or Python serves it again. */
void session_done(struct session *s, struct slot *slot, int64_t moved)
{
    gate_leave(s->gate);
    if (moved == slot->length)
        client_reply(s, slot);
    else
        s->failed[s->failures++] = (int)(slot - s->slots);
}

/* Copies the payload of a request that Python will serve into the slot. */
static void keep_payload(struct slot *slot, const uint8_t *payload)
{
    if (payload && payload != slot->data)
        memcpy(slot->data, payload, slot->length);
}

/* Serves a request that is here with all its data: at once, by the queue, or by Python. */
static void run(struct session *s, struct slot *slot, const uint8_t *payload)
{
    const struct layout *l = &s->layout;
    uint64_t at = 0, block = 0;
    int write = slot->command == CMD_WRITE;
    if (!gate_enter(s->gate, l->generation, s->now)) {
        keep_payload(slot, payload);
        s->failed[s->failures++] = (int)(slot - s->slots);
        return;
    }
    enum found found = layout_find(l, slot->offset, slot->length, write, &at, &block);
    if (found == ABSENT) {
        memset(slot->data, 0, slot->length);
        session_done(s, slot, slot->length);
        return;
    }
    int alone = s->lonely > LONELY && !s->inflight && !s->queue &&
                s->in_end - s->in_at < REQUEST_HEAD;
    if ((!alone && direct_io_open(s)) || found != PRESENT) {
        keep_payload(slot, payload);
        if (found != PRESENT)
            session_done(s, slot, -1);
        else
            direct_io_queue(s, slot, at);
        return;
    }
    /* The queue asks for aligned memory; so does direct I/O without it. */
    if (payload && l->direct) {
        keep_payload(slot, payload);
        payload = slot->data;
    }
    ssize_t moved = write ? pwrite(l->fd, payload, slot->length, (off_t)at)
                          : pread(l->fd, slot->data, slot->length, (off_t)at);
    if (moved != (ssize_t)slot->length)
        keep_payload(slot, payload);
    session_done(s, slot, moved);
    if (alone && !s->filling && client_receive(s, MSG_DONTWAIT) > 0)
        s->lonely = 0;
}

enum next { TAKEN, NEED_BYTES, FOR_PYTHON, NEED_BLOCK };

/* Takes the next request of the inbox. */
static enum next take_next(struct session *s)
{
    uint32_t here = s->in_end - s->in_at;
    if (here < REQUEST_HEAD)
        return NEED_BYTES;
    /* Those before it may have taken long, or had to wait for the client. */
    s->now = clock_ns();
    const uint8_t *head = s->inbox + s->in_at;
    uint64_t cookie, offset = get64(head + 16), at;
    uint32_t length = get32(head + 24);
    /* No flags, and a command that is a read or a write. */
    uint32_t command = get32(head + 4);
    if (get32(head) != REQUEST_MAGIC || command > CMD_WRITE)
        return FOR_PYTHON;
    enum found found = layout_find(&s->layout, offset, length, command == CMD_WRITE, &at, &s->absent);
    if (found == LEFT_TO_PYTHON)
        return FOR_PYTHON;
    if (found == TO_ALLOCATE)
        return NEED_BLOCK;
    if (!gate_serves(s->gate, s->now))
        return FOR_PYTHON; /* while its data may still be on its way */
    uint32_t data = command == CMD_READ || here - REQUEST_HEAD > length ? length : here - REQUEST_HEAD;
    int fits = slots_afford(s, length, data);
    if (fits <= 0)
        return fits ? FOR_PYTHON : NEED_BYTES;
    memcpy(&cookie, head + 8, 8);
    struct slot *slot = slots_take(s, (uint16_t)command, be64toh(cookie), offset, length);
    s->in_at += REQUEST_HEAD;
    here -= REQUEST_HEAD;
    latency_begin(&s->latency, s->now);
    if (command == CMD_READ) {
        run(s, slot, NULL);
        return TAKEN;
    }
    s->large = length >= LARGE;
    if (here >= length) {
        s->in_at += length;
        run(s, slot, s->inbox + s->in_at - length);
        return TAKEN;
    }
    memcpy(slot->data, s->inbox + s->in_at, here);
    s->in_at += here;
    s->filling = slot;
    s->filled = here;
    return TAKEN;
}

/* Ends and replies to all that is in flight, and says what Python has to do. */
static enum reason finish(struct session *s, enum reason why)
{
    direct_io_drain(s);
    if (!client_send(s))
        why = DISCONNECTED;
    s->latency.began = 0;
    return why != DISCONNECTED && s->failures ? RETRY : why;
}

enum reason session_drain(struct session *s) { return finish(s, PLAIN_PATH); }

/* Python has replied to the first request that failed. */
void session_replied(struct session *s)
{
    slots_give_back(s, &s->slots[s->failed[0]]);
    memmove(s->failed, s->failed + 1, (size_t)--s->failures * sizeof s->failed[0]);
}

enum reason session_serve(struct session *s)
{
    if (s->failures)
        return finish(s, RETRY);
    s->now = clock_ns();
    for (;;) {
        enum next next = NEED_BYTES;
        if (s->filling && s->filled == s->filling->length) {
            struct slot *slot = s->filling;
            s->filling = NULL;
            run(s, slot, slot->data);
        }
        int may_take = 1;
        while (!s->filling && !s->failures && (may_take = slots_can_take(s)) &&
               (next = take_next(s)) == TAKEN)
            ;
        may_take = may_take && !s->starved;
        if (s->queue)
            direct_io_submit(s);
        if (s->failures && !s->filling)
            return finish(s, RETRY);
        if (next == FOR_PYTHON)
            return finish(s, PLAIN_PATH);
        if (next == NEED_BLOCK)
            return client_send(s) ? ALLOCATE : finish(s, DISCONNECTED);
        if (s->outs && !client_send(s))
            return finish(s, DISCONNECTED);
        /* Sending freed slots, and may have waited until the requests in flight had ended. */
        if ((!may_take && slots_can_take(s)) || (s->failures && !s->filling))
            continue;
        ssize_t got;
        if (s->inflight) {
            direct_io_reap(s, 0);
            if (s->outs || s->failures)
                continue;
            got = direct_io_wait(s, s->filling || may_take);
        } else
            got = client_wait(s);
        if (!got)
            return finish(s, DISCONNECTED);
        s->now = clock_ns();
    }
}

/* Takes memory and a number of processors; the caller has set what it handed in. */
int session_open(struct session *s)
{
    cpu_set_t cpus;
    s->event = -1;
    s->cpus = sched_getaffinity(0, sizeof cpus, &cpus) ? 1 : CPU_COUNT(&cpus);
    return slots_open(s);
}

/* Ends the requests in flight, without replies. */
void session_close(struct session *s)
{
    direct_io_drain(s);
    direct_io_close(s);
    slots_close(s);
}

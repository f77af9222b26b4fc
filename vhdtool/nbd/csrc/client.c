/* The socket of one client: receive requests, wait for them, send replies. */
#include "fast_path.h"
#include <errno.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define SMALL_RECEIVE (128u << 10)
#define MOST_SPIN 60000 /* ns */
#define IDLE 500        /* ms, after which a client's memory is given back */

static _Atomic int spinners;

/* Receives what has arrived; > 0 some, 0 the client has gone, -1 nothing yet. */
ssize_t client_receive(struct session *s, int flags)
{
    ssize_t got;
    do {
        if (s->filling) {
            struct slot *slot = s->filling;
            got = recv(s->sock, slot->data + s->filled, slot->length - s->filled,
                       flags ? flags : MSG_WAITALL);
            if (got > 0) {
                s->filled += (uint32_t)got;
                slots_touch(s, slot, s->filled);
            }
        } else {
            if (s->in_at == s->in_end)
                s->in_at = s->in_end = 0;
            else if (s->in_size - s->in_at < SMALL_RECEIVE) {
                memmove(s->inbox, s->inbox + s->in_at, s->in_end - s->in_at);
                s->in_end -= s->in_at;
                s->in_at = 0;
            }
            uint32_t want = s->large ? REQUEST_HEAD : SMALL_RECEIVE;
            if (want > s->in_size - s->in_end)
                want = s->in_size - s->in_end;
            if (s->large && s->in_end - s->in_at < REQUEST_HEAD)
                want = REQUEST_HEAD - (s->in_end - s->in_at);
            got = recv(s->sock, s->inbox + s->in_end, want, flags);
            if (got > 0) {
                s->in_end += (uint32_t)got;
                s->in_used = s->in_used > s->in_end ? s->in_used : s->in_end;
            }
        }
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? -1 : 0;
    return got;
}

static void set_since(struct session *s, enum waiting how, int64_t since)
{
    atomic_store_explicit(&s->since[how], since, memory_order_relaxed);
}

/* Releases the memory of an idle client. */
static void release_memory(struct session *s)
{
    struct pollfd one = {s->sock, POLLIN, 0};
    int inbox = s->in_used > IDLE_MEMORY && s->in_at == s->in_end, slots = s->counted > IDLE_MEMORY;
    if (!(slots || inbox) || s->spares < SLOTS || poll(&one, 1, IDLE))
        return;
    if (slots)
        slots_release(s);
    if (inbox) {
        madvise(s->inbox, s->in_size, MADV_DONTNEED);
        s->in_used = 0;
    }
}

/*
 * Waits for bytes, with nothing in flight. Polls for a moment before it sleeps, when the last
 * requests came soon: waking a processor costs more than most requests. The time grows
 * after short waits, and halves after long ones.
 */
ssize_t client_wait(struct session *s)
{
    ssize_t got = client_receive(s, MSG_DONTWAIT);
    if (got >= 0)
        return got;
    int64_t from = clock_ns(), now = from;
    if (s->spin && atomic_fetch_add(&spinners, 1) < s->cpus - 1) {
        do {
            got = client_receive(s, MSG_DONTWAIT);
            now = clock_ns();
        } while (got < 0 && now - from < s->spin);
        atomic_fetch_sub(&spinners, 1);
        if (got >= 0)
            return got;
    } else if (s->spin)
        atomic_fetch_sub(&spinners, 1);
    int idle = s->spares == SLOTS && s->in_at == s->in_end;
    set_since(s, idle ? IDLE_SINCE : STALLED_SINCE, now);
    release_memory(s);
    got = client_receive(s, 0);
    set_since(s, idle ? IDLE_SINCE : STALLED_SINCE, 0);
    int64_t took = clock_ns() - from;
    if (took > MOST_SPIN)
        s->spin = s->spin > 2000 ? s->spin / 2 : 0;
    else if (s->cpus > 1)
        s->spin = s->spin ? (s->spin * 2 < MOST_SPIN ? s->spin * 2 : MOST_SPIN) : 8000;
    return got;
}

/* Frames the reply to a request that was served; `client_send` sends it. */
void client_reply(struct session *s, struct slot *slot)
{
    int read = slot->command == CMD_READ;
    size_t size;
    if (s->structured) {
        put32(slot->head, CHUNK_MAGIC);
        put16(slot->head + 4, 1); /* the only chunk */
        put16(slot->head + 6, read ? 1 : 0);
        put64(slot->head + 8, slot->cookie);
        put32(slot->head + 16, read ? 8 + slot->length : 0);
        put64(slot->head + 20, slot->offset);
        size = read ? DATA_CHUNK_HEAD : CHUNK_HEAD;
    } else {
        put32(slot->head, REPLY_MAGIC);
        put32(slot->head + 4, 0);
        put64(slot->head + 8, slot->cookie);
        size = SIMPLE_REPLY;
    }
    s->out[s->outs++] = (struct iovec){slot->head, size};
    if (read)
        s->out[s->outs++] = (struct iovec){slot->data, slot->length};
    s->replying[s->replies++] = (int)(slot - s->slots);
    s->counters[read ? 0 : 1] += slot->length;
    s->counters[read ? 2 : 3]++;
}

/* Sends all replies; 0 when the client has gone. Nothing is in flight while it waits for it. */
int client_send(struct session *s)
{
    int from = 0, flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    if (s->broken)
        return 0;
    while (from < s->outs) {
        struct msghdr m = {.msg_iov = s->out + from, .msg_iovlen = (size_t)(s->outs - from)};
        ssize_t count = sendmsg(s->sock, &m, flags);
        if (count < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN && errno != EWOULDBLOCK) {
                s->broken = 1;
                return 0;
            }
            direct_io_drain(s);
            flags &= ~MSG_DONTWAIT;
            set_since(s, STALLED_SINCE, clock_ns());
            continue;
        }
        while (from < s->outs && (size_t)count >= s->out[from].iov_len)
            count -= (ssize_t)s->out[from++].iov_len;
        if (count) {
            s->out[from].iov_base = (uint8_t *)s->out[from].iov_base + count;
            s->out[from].iov_len -= (size_t)count;
        }
    }
    if (!(flags & MSG_DONTWAIT))
        set_since(s, STALLED_SINCE, 0);
    for (int n = 0; n < s->replies; n++)
        slots_give_back(s, &s->slots[s->replying[n]]);
    s->outs = s->replies = 0;
    latency_end(&s->latency);
    return 1;
}

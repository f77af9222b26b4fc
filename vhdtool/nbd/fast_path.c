/*
 * The straight requests of one NBD client: reads and writes of places that the image's metadata,
 * as it is in memory, names already. Everything else, and every failure, goes back to Python.
 *
 * No metadata is written here, no lock is taken, nothing is decided: a request is let in only while
 * the gate's mode and generation are those under which Python handed out `struct places`.
 * fast_path.py is the only caller and explains the values; it holds the memory that is pointed to.
 *
 * With O_DIRECT requests go to the kernel's own queue (io_submit(2)) and overlap; in the page cache
 * they are done at once, where they are met.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <endian.h>

enum { HEAD = 28, SIMPLE = 16, CHUNK = 20, DATA_CHUNK = 28 };
enum { CMD_READ = 0, CMD_WRITE = 1 };
enum { SERVE = 0 };
/* What `straight_serve` returns. */
enum { GONE = 0, SLOW = 1, AGAIN = 2, PLACE = 3 };
/* Flags of `struct places`. */
enum { DIRECT = 1, WRITABLE = 2, ZEROS = 4, WHOLE = 8, STRUCTURED = 16 };

/* What a client is waited for with: the next request, or the rest of one or room for a reply. */
enum { IDLE_SINCE = 0, STALLED_SINCE = 1 };

#define REQUEST_MAGIC 0x25609513u
#define REPLY_MAGIC 0x67446698u
#define CHUNK_MAGIC 0x668e33efu
#define UNUSED 0xffffffffu
#define SECTOR 512u
#define SLOTS 64
#define LARGEST (1u << 20)      /* bytes of a request that is served here */
#define MOST (16u << 20)        /* bytes of requests under way at once */
/* Bytes from slot to slot: more than they hold, so that they do not share the sets of a cache. */
#define STRIDE (LARGEST + (68u << 10))
#define SMALL_STRIDE (LARGE + (4u << 10))
#define LARGE_MEMORY ((size_t)SLOTS * STRIDE)
#define ALL_MEMORY (LARGE_MEMORY + (size_t)SLOTS * SMALL_STRIDE)
#define LARGE (32u << 10)       /* payloads from here on are received where they stay */
#define SMALL_RECV (128u << 10)
#define LONELY 16                /* then a request is worth no queue */
#define MOST_SPIN 60000         /* ns */
#define IDLE 500                 /* ms, after which a client's memory is given back */
#define KEPT (256u << 10)       /* bytes of its inbox, and of its slots, that an idle client keeps */
#define HUGE_AFTER (32ull << 20) /* bytes that a client has moved before it gets huge pages */
#define BUCKETS 13

struct gate {
    _Atomic int32_t mode;
    _Atomic int32_t inside;
    _Atomic uint32_t generation;
    int32_t unused;
    _Atomic int64_t deadline; /* ns of CLOCK_MONOTONIC: later requests need a look at the lease */
};

struct places {
    int32_t fd;
    uint32_t flags;
    uint32_t generation;
    uint32_t bitmap_bytes;
    uint64_t size;
    uint64_t block_bytes; /* 0: the disk is its file */
    const uint32_t *bat;
    const uint8_t *full;
    uint64_t blocks; /* those that lie wholly within the disk */
};

struct slot {
    uint8_t *data;
    uint32_t touched[2]; /* bytes of its memory that count as used: small, large */
    uint8_t head[DATA_CHUNK];
    uint16_t command;
    uint32_t length;
    uint64_t cookie, offset, at;
    struct iocb block;
};

struct engine {
    /* What Python reads and writes: fast_path.py's `Engine` has the same fields. */
    uint32_t in_at, in_end;
    uint32_t inflight;
    uint32_t again_length;
    uint64_t again_cookie, again_offset;
    uint32_t again_command;
    uint32_t unused;
    uint8_t *again_data;
    uint64_t place;
    uint64_t *moved; /* bytes read, bytes written, reads, writes */
    uint64_t seconds_ns;
    uint64_t counts[BUCKETS];
    /* Ours alone. */
    uint64_t bounds[BUCKETS - 1];
    uint8_t *inbox;
    uint32_t in_size;
    int sock;
    uint8_t *memory;
    struct slot slots[SLOTS];
    int spare[SLOTS], spares;
    int again[SLOTS], agains;
    int queued[SLOTS], queue; /* iocbs to be submitted */
    uint32_t under_way;       /* bytes in slots */
    int starved;              /* no memory for the next request before one under way has ended */
    int huge;                 /* large requests are in huge pages */
    int64_t counted;          /* our part of `shared` */
    uint32_t deep;            /* bytes of the inbox that have been used */
    _Atomic int64_t *since;   /* ns of CLOCK_MONOTONIC while we wait for the client, or 0; IDLE_SINCE */
    struct slot *filling;     /* a write whose payload is still coming */
    uint32_t filled;
    int large;                /* the last write was a large one: the next may be too */
    struct iovec out[2 * SLOTS];
    int outs, sending[SLOTS], sends;
    aio_context_t context;
    int event, aio_failed;
    int broken; /* an answer could not be sent: nothing may follow it */
    int lonely; /* so many requests came one by one */
    int64_t now, began, spin;
    int cpus;
};

static _Atomic int spinners;
static _Atomic int64_t shared;      /* bytes of memory that the slots of all clients use */
static _Atomic int64_t most_shared; /* how many there may be */

static int64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return be32toh(v); }
static uint64_t get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return be64toh(v); }
static void put16(uint8_t *p, uint16_t v) { v = htobe16(v); memcpy(p, &v, 2); }
static void put32(uint8_t *p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
static void put64(uint8_t *p, uint64_t v) { v = htobe64(v); memcpy(p, &v, 8); }

/* The gate: Python changes the mode, and waits until nobody is inside. */

void straight_gate_set(struct gate *g, int32_t mode)
{
    atomic_store(&g->mode, mode);
    atomic_fetch_add(&g->generation, 1);
}

int32_t straight_gate_inside(struct gate *g) { return atomic_load(&g->inside); }

void straight_gate_deadline(struct gate *g, int64_t deadline)
{
    atomic_store(&g->deadline, deadline);
}

static void leave(struct gate *g) { atomic_fetch_sub(&g->inside, 1); }

static int enter(struct engine *e, struct gate *g, const struct places *p)
{
    atomic_fetch_add(&g->inside, 1);
    if (atomic_load(&g->mode) == SERVE && atomic_load(&g->generation) == p->generation &&
        e->now <= atomic_load_explicit(&g->deadline, memory_order_relaxed))
        return 1;
    leave(g);
    return 0;
}

/* Where a request's data lies. */

enum where { NOWHERE, THERE, HOLE, UNPLACED };

static enum where locate(const struct places *p, uint64_t offset, uint32_t length, int write,
                         uint64_t *at, uint64_t *block)
{
    if (!length || length > LARGEST || ((offset | length) & (SECTOR - 1)) ||
        offset > p->size || length > p->size - offset || (write && !(p->flags & WRITABLE)))
        return NOWHERE;
    if (!p->block_bytes) {
        *at = offset;
        return THERE;
    }
    *block = offset / p->block_bytes;
    uint64_t within = offset % p->block_bytes;
    if (within + length > p->block_bytes || *block >= p->blocks)
        return NOWHERE;
    uint32_t entry = __atomic_load_n(&p->bat[*block], __ATOMIC_ACQUIRE);
    if (entry == UNUSED) {
        if (!write)
            return p->flags & ZEROS ? HOLE : NOWHERE;
        return p->flags & WHOLE ? UNPLACED : NOWHERE;
    }
    if (!__atomic_load_n(&p->full[*block], __ATOMIC_ACQUIRE))
        return NOWHERE;
    *at = (uint64_t)entry * SECTOR + p->bitmap_bytes + within;
    return THERE;
}

/* Slots: one request each, with aligned memory for its data. */

static int can_take(const struct engine *e)
{
    return e->spares && !e->starved && e->under_way + LARGEST <= MOST;
}

void straight_memory(int64_t most) { atomic_store(&most_shared, most); }

/* Whether all clients together may use so much more. */
static int is_left(uint32_t more)
{
    return atomic_load_explicit(&shared, memory_order_relaxed) + more <=
           atomic_load_explicit(&most_shared, memory_order_relaxed);
}

/* Counts the first `bytes` of a slot's memory as used. */
static void touch(struct engine *e, struct slot *s, int large, uint32_t bytes)
{
    uint32_t now = large && e->huge ? LARGEST : bytes;
    if (now <= s->touched[large])
        return;
    atomic_fetch_add(&shared, now - s->touched[large]);
    e->counted += now - s->touched[large];
    s->touched[large] = now;
}

/* Gives the memory of all slots back; none of them is in use. */
static void let_go_of_slots(struct engine *e)
{
    madvise(e->memory, ALL_MEMORY, MADV_DONTNEED);
    for (int n = 0; n < SLOTS; n++)
        e->slots[n].touched[0] = e->slots[n].touched[1] = 0;
    atomic_fetch_sub(&shared, e->counted);
    e->counted = 0;
}

/*
 * Whether the next slot may hold so many bytes, of which `here` are there. Where all clients
 * together use too much memory, one small request at a time is served here: 1 yes, 0 not before
 * others of this client have ended, -1 not here.
 */
static int afford(struct engine *e, uint32_t length, uint32_t here)
{
    struct slot *s = &e->slots[e->spare[e->spares - 1]];
    int large = length > LARGE;
    if (large && !e->huge && e->moved[0] + e->moved[1] > HUGE_AFTER) {
        /* Memory that has been touched already stays in small pages: it begins anew. */
        if (e->under_way) {
            e->starved = 1;
            return 0;
        }
        let_go_of_slots(e);
        madvise(e->memory, LARGE_MEMORY, MADV_HUGEPAGE);
        e->huge = 1;
    }
    if (length > s->touched[large] && !is_left(length - s->touched[large])) {
        if (e->under_way) {
            e->starved = 1;
            return 0;
        }
        let_go_of_slots(e);
        if (large && !is_left(length))
            return -1;
    }
    touch(e, s, large, here);
    return 1;
}

static struct slot *take(struct engine *e, uint16_t command, uint64_t cookie, uint64_t offset,
                         uint32_t length)
{
    struct slot *s = &e->slots[e->spare[--e->spares]];
    s->command = command;
    s->cookie = cookie;
    s->offset = offset;
    s->length = length;
    /* Large requests are in huge pages, which a disk reads into in one piece: a quarter faster. */
    size_t n = (size_t)(s - e->slots);
    s->data = length > LARGE ? e->memory + n * STRIDE : e->memory + LARGE_MEMORY + n * SMALL_STRIDE;
    e->under_way += length;
    return s;
}

static void give_back(struct engine *e, struct slot *s)
{
    e->under_way -= s->length;
    e->starved = 0;
    e->spare[e->spares++] = (int)(s - e->slots);
}

static void try_again(struct engine *e, struct slot *s) { e->again[e->agains++] = (int)(s - e->slots); }

static void answer(struct engine *e, const struct places *p, struct slot *s)
{
    int structured = p->flags & STRUCTURED, read = s->command == CMD_READ;
    size_t size;
    if (structured) {
        put32(s->head, CHUNK_MAGIC);
        put16(s->head + 4, 1); /* the only chunk */
        put16(s->head + 6, read ? 1 : 0);
        put64(s->head + 8, s->cookie);
        put32(s->head + 16, read ? 8 + s->length : 0);
        put64(s->head + 20, s->offset);
        size = read ? DATA_CHUNK : CHUNK;
    } else {
        put32(s->head, REPLY_MAGIC);
        put32(s->head + 4, 0);
        put64(s->head + 8, s->cookie);
        size = SIMPLE;
    }
    e->out[e->outs++] = (struct iovec){s->head, size};
    if (read)
        e->out[e->outs++] = (struct iovec){s->data, s->length};
    e->sending[e->sends++] = (int)(s - e->slots);
    e->moved[read ? 0 : 1] += s->length;
    e->moved[read ? 2 : 3]++;
}

/* Direct I/O: submitted together, reaped as they end. */

static int direct(struct engine *e, const struct places *p)
{
    if (!(p->flags & DIRECT) || e->aio_failed)
        return 0;
    if (e->context)
        return 1;
    e->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (e->event < 0 || syscall(SYS_io_setup, SLOTS, &e->context) < 0) {
        /* No queue to be had: one by one. */
        e->context = 0;
        e->aio_failed = 1;
        return 0;
    }
    return 1;
}

static void done(struct engine *e, struct gate *g, const struct places *p, struct slot *s,
                 int64_t moved)
{
    leave(g);
    if (moved == s->length)
        answer(e, p, s);
    else
        try_again(e, s);
}

static void submit(struct engine *e, struct gate *g, const struct places *p)
{
    struct iocb *blocks[SLOTS];
    int count = e->queue, from = 0;
    e->lonely = count == 1 && !e->inflight ? e->lonely + 1 : 0;
    for (int n = 0; n < count; n++)
        blocks[n] = &e->slots[e->queued[n]].block;
    e->queue = 0;
    while (from < count) {
        long taken = syscall(SYS_io_submit, e->context, (long)(count - from), blocks + from);
        if (taken < 0 && errno == EINTR)
            continue;
        if (taken <= 0) {
            /* Python does it on its own, and learns why. */
            done(e, g, p, &e->slots[blocks[from]->aio_data], -1);
            from++;
            continue;
        }
        e->inflight += (uint32_t)taken;
        from += (int)taken;
    }
}

static void reap(struct engine *e, struct gate *g, const struct places *p, int least)
{
    struct io_event events[SLOTS];
    struct timespec none = {0, 0};
    while (e->inflight) {
        long got = syscall(SYS_io_getevents, e->context, (long)least, (long)SLOTS, events,
                           least ? NULL : &none);
        if (got < 0 && errno == EINTR)
            continue;
        for (long n = 0; n < got; n++)
            done(e, g, p, &e->slots[events[n].data], (int64_t)events[n].res);
        if (got > 0)
            e->inflight -= (uint32_t)got;
        if (!least || got <= 0 || got >= least)
            return;
        least -= (int)got;
    }
}

static void drain(struct engine *e, struct gate *g, const struct places *p)
{
    if (e->queue)
        submit(e, g, p);
    if (e->inflight)
        reap(e, g, p, (int)e->inflight);
}

/* Receives what there is; > 0 some, 0 the client has gone, -1 nothing yet. */
static ssize_t receive(struct engine *e, int flags)
{
    ssize_t got;
    do {
        if (e->filling) {
            struct slot *s = e->filling;
            got = recv(e->sock, s->data + e->filled, s->length - e->filled,
                       flags ? flags : MSG_WAITALL);
            if (got > 0) {
                e->filled += (uint32_t)got;
                touch(e, s, s->length > LARGE, e->filled);
            }
        } else {
            if (e->in_at == e->in_end)
                e->in_at = e->in_end = 0;
            else if (e->in_size - e->in_at < SMALL_RECV) {
                memmove(e->inbox, e->inbox + e->in_at, e->in_end - e->in_at);
                e->in_end -= e->in_at;
                e->in_at = 0;
            }
            uint32_t want = e->large ? HEAD : SMALL_RECV;
            if (want > e->in_size - e->in_end)
                want = e->in_size - e->in_end;
            if (e->large && e->in_end - e->in_at < HEAD)
                want = HEAD - (e->in_end - e->in_at);
            got = recv(e->sock, e->inbox + e->in_end, want, flags);
            if (got > 0) {
                e->in_end += (uint32_t)got;
                e->deep = e->deep > e->in_end ? e->deep : e->in_end;
            }
        }
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? -1 : 0;
    return got;
}

/* A request is here with all its data: it is done, queued, or handed to Python. */
static void run(struct engine *e, struct gate *g, const struct places *p, struct slot *s,
                const uint8_t *payload)
{
    uint64_t at = 0, block = 0;
    int write = s->command == CMD_WRITE;
    if (!enter(e, g, p)) {
        if (payload && payload != s->data)
            memcpy(s->data, payload, s->length);
        try_again(e, s);
        return;
    }
    enum where where = locate(p, s->offset, s->length, write, &at, &block);
    if (where == HOLE) {
        memset(s->data, 0, s->length);
        done(e, g, p, s, s->length);
        return;
    }
    int alone = e->lonely > LONELY && !e->inflight && !e->queue && e->in_end - e->in_at < HEAD;
    if ((!alone && direct(e, p)) || where != THERE) {
        if (payload && payload != s->data)
            memcpy(s->data, payload, s->length);
        if (where != THERE) {
            done(e, g, p, s, -1);
            return;
        }
        memset(&s->block, 0, sizeof s->block);
        s->block.aio_data = (uint64_t)(s - e->slots);
        s->block.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
        s->block.aio_fildes = (uint32_t)p->fd;
        s->block.aio_buf = (uint64_t)(uintptr_t)s->data;
        s->block.aio_nbytes = s->length;
        s->block.aio_offset = (int64_t)at;
        s->block.aio_flags = IOCB_FLAG_RESFD;
        s->block.aio_resfd = (uint32_t)e->event;
        e->queued[e->queue++] = (int)(s - e->slots);
        return;
    }
    /* The queue asks for aligned memory; so does direct I/O without it. */
    if (payload && payload != s->data && (p->flags & DIRECT)) {
        memcpy(s->data, payload, s->length);
        payload = s->data;
    }
    ssize_t moved = write ? pwrite(p->fd, payload, s->length, (off_t)at)
                          : pread(p->fd, s->data, s->length, (off_t)at);
    if (moved != (ssize_t)s->length && payload && payload != s->data)
        memcpy(s->data, payload, s->length);
    done(e, g, p, s, moved);
    if (alone && !e->filling && receive(e, MSG_DONTWAIT) > 0)
        e->lonely = 0;
}

/* The next request of the inbox: 1 taken, 0 more bytes are needed, -1 not for us, -2 needs a place. */
static int next(struct engine *e, struct gate *g, const struct places *p)
{
    uint32_t here = e->in_end - e->in_at;
    if (here < HEAD)
        return 0;
    /* Those before it may have taken long, or had to wait for the client. */
    e->now = clock_ns();
    const uint8_t *head = e->inbox + e->in_at;
    uint64_t cookie, offset = get64(head + 16), at, block;
    uint32_t length = get32(head + 24);
    /* No flags, and a command that is a read or a write. */
    uint32_t command = get32(head + 4);
    if (get32(head) != REQUEST_MAGIC || command > CMD_WRITE)
        return -1;
    enum where where = locate(p, offset, length, command == CMD_WRITE, &at, &block);
    if (where == NOWHERE)
        return -1;
    if (where == UNPLACED) {
        e->place = block;
        return -2;
    }
    if (atomic_load_explicit(&g->mode, memory_order_relaxed) != SERVE ||
        e->now > atomic_load_explicit(&g->deadline, memory_order_relaxed))
        return -1; /* while its data may still be on its way */
    uint32_t data = command == CMD_READ || here - HEAD > length ? length : here - HEAD;
    int fits = afford(e, length, data);
    if (fits <= 0)
        return fits;
    memcpy(&cookie, head + 8, 8);
    struct slot *s = take(e, (uint16_t)command, be64toh(cookie), offset, length);
    e->in_at += HEAD;
    here -= HEAD;
    if (!e->began)
        e->began = e->now;
    if (command == CMD_READ) {
        run(e, g, p, s, NULL);
        return 1;
    }
    e->large = length >= LARGE;
    if (here >= length) {
        e->in_at += length;
        run(e, g, p, s, e->inbox + e->in_at - length);
        return 1;
    }
    memcpy(s->data, e->inbox + e->in_at, here);
    e->in_at += here;
    e->filling = s;
    e->filled = here;
    return 1;
}

static void sent(struct engine *e)
{
    for (int n = 0; n < e->sends; n++)
        give_back(e, &e->slots[e->sending[n]]);
    e->outs = e->sends = 0;
}

static void measured(struct engine *e)
{
    if (!e->began)
        return;
    uint64_t took = (uint64_t)(clock_ns() - e->began);
    int bucket = 0;
    while (bucket < BUCKETS - 1 && took > e->bounds[bucket])
        bucket++;
    e->counts[bucket]++;
    e->seconds_ns += took;
    e->began = 0;
}

static void waits(struct engine *e, int how, int64_t since)
{
    atomic_store_explicit(&e->since[how], since, memory_order_relaxed);
}

/* Sends all answers; 0 when the client has gone. Before it waits for the client nobody is inside. */
static int send_all(struct engine *e, struct gate *g, const struct places *p)
{
    int from = 0, flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    if (e->broken)
        return 0;
    while (from < e->outs) {
        struct msghdr m = {.msg_iov = e->out + from, .msg_iovlen = (size_t)(e->outs - from)};
        ssize_t count = sendmsg(e->sock, &m, flags);
        if (count < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN && errno != EWOULDBLOCK) {
                e->broken = 1;
                return 0;
            }
            drain(e, g, p);
            flags &= ~MSG_DONTWAIT;
            waits(e, STALLED_SINCE, clock_ns());
            continue;
        }
        while (from < e->outs && (size_t)count >= e->out[from].iov_len)
            count -= (ssize_t)e->out[from++].iov_len;
        if (count) {
            e->out[from].iov_base = (uint8_t *)e->out[from].iov_base + count;
            e->out[from].iov_len -= (size_t)count;
        }
    }
    if (!(flags & MSG_DONTWAIT))
        waits(e, STALLED_SINCE, 0);
    sent(e);
    measured(e);
    return 1;
}

/* Of a client that asks for nothing, when none of its requests is under way. */
static void let_go_of_memory(struct engine *e)
{
    struct pollfd one = {e->sock, POLLIN, 0};
    int inbox = e->deep > KEPT && e->in_at == e->in_end, slots = e->counted > KEPT;
    if (!(slots || inbox) || e->spares < SLOTS || poll(&one, 1, IDLE))
        return;
    if (slots)
        let_go_of_slots(e);
    if (inbox) {
        madvise(e->inbox, e->in_size, MADV_DONTNEED);
        e->deep = 0;
    }
}

/*
 * Looks again for a moment before it sleeps, when the last requests came soon: waking a processor
 * costs more than most requests. The time grows and shrinks with how often it pays.
 */
static ssize_t wait_for_client(struct engine *e)
{
    ssize_t got = receive(e, MSG_DONTWAIT);
    if (got >= 0)
        return got;
    int64_t from = clock_ns(), now = from;
    if (e->spin && atomic_fetch_add(&spinners, 1) < e->cpus - 1) {
        do {
            got = receive(e, MSG_DONTWAIT);
            now = clock_ns();
        } while (got < 0 && now - from < e->spin);
        atomic_fetch_sub(&spinners, 1);
        if (got >= 0)
            return got;
    } else if (e->spin)
        atomic_fetch_sub(&spinners, 1);
    int idle = e->spares == SLOTS && e->in_at == e->in_end;
    waits(e, idle ? IDLE_SINCE : STALLED_SINCE, now);
    let_go_of_memory(e);
    got = receive(e, 0);
    waits(e, idle ? IDLE_SINCE : STALLED_SINCE, 0);
    int64_t took = clock_ns() - from;
    if (took > MOST_SPIN)
        e->spin = e->spin > 2000 ? e->spin / 2 : 0;
    else if (e->cpus > 1)
        e->spin = e->spin ? (e->spin * 2 < MOST_SPIN ? e->spin * 2 : MOST_SPIN) : 8000;
    return got;
}

/* Until a request under way has ended or, if there is room for one, a new one is here. */
static ssize_t wait_for_either(struct engine *e, struct gate *g, const struct places *p, int room)
{
    struct pollfd fds[2] = {{e->event, POLLIN, 0}, {e->sock, POLLIN, 0}};
    uint64_t count;
    if (poll(fds, room ? 2 : 1, -1) < 0)
        return -1;
    if (fds[0].revents) {
        if (read(e->event, &count, sizeof count) < 0 && errno != EAGAIN)
            return 0;
        reap(e, g, p, 0);
    }
    return room && fds[1].revents ? receive(e, MSG_DONTWAIT) : -1;
}

static int finish(struct engine *e, struct gate *g, const struct places *p, int why)
{
    drain(e, g, p);
    if (!send_all(e, g, p))
        why = GONE;
    e->began = 0;
    if (why == GONE)
        return GONE;
    if (e->agains) {
        struct slot *s = &e->slots[e->again[0]];
        e->again_command = s->command;
        e->again_cookie = s->cookie;
        e->again_offset = s->offset;
        e->again_length = s->length;
        e->again_data = s->data;
        return AGAIN;
    }
    return why;
}

/* Python has answered the request that AGAIN told of. */
void straight_answered(struct engine *e)
{
    give_back(e, &e->slots[e->again[0]]);
    memmove(e->again, e->again + 1, (size_t)--e->agains * sizeof e->again[0]);
}

/* All that is under way ends, and is answered: 0 when the client has gone. */
int straight_drain(struct engine *e, struct gate *g, const struct places *p)
{
    return finish(e, g, p, SLOW);
}

int straight_serve(struct engine *e, struct gate *g, const struct places *p)
{
    if (e->agains)
        return finish(e, g, p, AGAIN);
    e->now = clock_ns();
    for (;;) {
        int got = 0;
        if (e->filling && e->filled == e->filling->length) {
            struct slot *s = e->filling;
            e->filling = NULL;
            run(e, g, p, s, s->data);
        }
        int room = 1;
        while (!e->filling && !e->agains && (room = can_take(e)) && (got = next(e, g, p)) > 0)
            ;
        room = room && !e->starved;
        if (e->queue)
            submit(e, g, p);
        if (e->agains && !e->filling)
            return finish(e, g, p, AGAIN);
        if (got < 0) {
            if (got == -2) {
                if (!send_all(e, g, p))
                    return finish(e, g, p, GONE);
                return PLACE;
            }
            return finish(e, g, p, SLOW);
        }
        if (e->outs && !send_all(e, g, p))
            return finish(e, g, p, GONE);
        /* Sending made room, and may have waited until what was under way had ended. */
        if ((!room && can_take(e)) || (e->agains && !e->filling))
            continue;
        ssize_t here;
        if (e->inflight) {
            reap(e, g, p, 0);
            if (e->outs || e->agains)
                continue;
            here = wait_for_either(e, g, p, e->filling || room);
        } else
            here = wait_for_client(e);
        if (!here)
            return finish(e, g, p, GONE);
        e->now = clock_ns();
    }
}

struct engine *straight_open(int sock, uint8_t *inbox, uint32_t in_size, uint64_t *moved,
                             const uint64_t *bounds, _Atomic int64_t *since)
{
    struct engine *e = calloc(1, sizeof *e);
    cpu_set_t cpus;
    if (!e)
        return NULL;
    e->memory = mmap(NULL, ALL_MEMORY, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (e->memory == MAP_FAILED) {
        free(e);
        return NULL;
    }
    /* With huge pages one byte would take megabytes. */
    madvise(e->memory, ALL_MEMORY, MADV_NOHUGEPAGE);
    e->sock = sock;
    e->inbox = inbox;
    e->in_size = in_size;
    e->moved = moved;
    e->since = since;
    e->event = -1;
    memcpy(e->bounds, bounds, sizeof e->bounds);
    for (int n = 0; n < SLOTS; n++)
        e->spare[e->spares++] = SLOTS - 1 - n;
    e->cpus = sched_getaffinity(0, sizeof cpus, &cpus) ? 1 : CPU_COUNT(&cpus);
    return e;
}

void straight_close(struct engine *e)
{
    if (e->context)
        syscall(SYS_io_destroy, e->context);
    if (e->event >= 0)
        close(e->event);
    munmap(e->memory, ALL_MEMORY);
    atomic_fetch_sub(&shared, e->counted);
    free(e);
}

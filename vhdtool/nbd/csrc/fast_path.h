/*
 * The fast path: plain reads and writes of one NBD client, served without Python.
 *
 * It serves reads and writes of blocks that are full, and reads of absent blocks. Everything else,
 * and every failure, goes back to Python (enum reason). It reads the image's metadata in memory; it
 * writes none, takes no lock and checks no lease. A request begins only while the gate's mode and
 * generation are those under which Python granted `struct layout`.
 *
 * With O_DIRECT, requests go to the kernel's queue (io_submit(2)) and overlap; through the page
 * cache each is done at once.
 *
 * gate.c       lets requests begin, and counts those in flight
 * layout.c     finds the data of a request in the file
 * slots.c      memory for requests, with a limit for all clients together
 * direct_io.c  the kernel's queue
 * client.c     the socket: receive, wait, reply
 * latency.c    a histogram
 * session.c    the loop over one client's requests
 * module.c     the types that Python sees (_fast_path.pyi)
 */
#ifndef FAST_PATH_H
#define FAST_PATH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <endian.h>
#include <linux/aio_abi.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { REQUEST_HEAD = 28, SIMPLE_REPLY = 16, CHUNK_HEAD = 20, DATA_CHUNK_HEAD = 28 };
enum { CMD_READ = 0, CMD_WRITE = 1 };
#define REQUEST_MAGIC 0x25609513u
#define REPLY_MAGIC 0x67446698u
#define CHUNK_MAGIC 0x668e33efu

#define UNUSED 0xffffffffu      /* BAT entry of an absent block */
#define SECTOR 512u
#define SLOTS 64
#define LONGEST (1u << 20)      /* bytes of a request that is served here */
#define LARGE (32u << 10)       /* payloads from here on are received into their slot */
#define MOST_IN_FLIGHT (16u << 20) /* bytes of one client's requests */
#define IDLE_MEMORY (256u << 10) /* bytes that the inbox, and the slots, of an idle client may have */
#define MOST_BOUNDS 31          /* of latency buckets */

/* Why a session gives the connection back to Python. */
enum reason {
    DISCONNECTED = 0, /* the client */
    PLAIN_PATH = 1,   /* the next request is for Python */
    RETRY = 2,        /* a request failed: Python serves it again and reports why */
    ALLOCATE = 3,     /* the next request writes to an absent block, which is to be allocated */
};

enum mode { SERVE = 0, HOLD = 1 };

/* Python changes the mode, and waits until no request is inside. */
struct gate {
    _Atomic int32_t mode;
    _Atomic int32_t inside;
    _Atomic uint32_t generation;
    _Atomic int64_t deadline; /* ns of CLOCK_MONOTONIC: later requests need a check of the lease */
};

/* Block layout of an open image, as Python granted it. Sizes in bytes. */
struct layout {
    int fd;
    uint32_t generation;
    int direct;   /* fd bypasses the page cache */
    int writable;
    int zeros;    /* absent blocks read as zeros */
    int whole;    /* an absent block that is written to is allocated as full */
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
    uint8_t head[DATA_CHUNK_HEAD];
    uint16_t command;
    uint32_t length;
    uint64_t cookie, offset;
    struct iocb block;
};

struct latency {
    int bounds;
    int64_t began;    /* ns; 0: nothing is being measured */
    uint64_t total;   /* ns */
    uint64_t bound[MOST_BOUNDS]; /* ns */
    uint64_t counts[MOST_BOUNDS + 1];
};

enum waiting { IDLE_SINCE = 0, STALLED_SINCE = 1 };

struct session {
    struct gate *gate;
    struct layout layout;
    int structured; /* replies */
    uint64_t *counters; /* bytes read, bytes written, reads, writes */
    struct latency latency;

    int sock;
    uint8_t *inbox;
    uint32_t in_size, in_at, in_end;
    uint32_t in_used;        /* bytes of the inbox that have been used */
    struct slot *filling;    /* a write whose payload is still arriving */
    uint32_t filled;
    int large;               /* the last write was a large one: the next may be too */
    _Atomic int64_t *since;  /* ns while we wait for the client, or 0; by enum waiting */

    uint8_t *memory;
    struct slot slots[SLOTS];
    int spare[SLOTS], spares;
    uint32_t taken;          /* bytes in slots */
    int starved;             /* no memory for the next request before one in flight has ended */
    int huge;                /* large requests are in huge pages */
    int64_t counted;         /* our part of the memory of all clients */

    int failed[SLOTS], failures;
    uint64_t absent;         /* the block that ALLOCATE is about */

    int queued[SLOTS], queue; /* iocbs to be submitted */
    uint32_t inflight;        /* iocbs submitted */
    aio_context_t context;
    int event, no_queue;
    int lonely;               /* how many requests in a row came one by one */

    struct iovec out[2 * SLOTS];
    int outs, replying[SLOTS], replies;
    int broken;               /* a reply could not be sent: nothing may follow it */

    int64_t now, spin;
    int cpus;
};

static inline uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return be32toh(v); }
static inline uint64_t get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return be64toh(v); }
static inline void put16(uint8_t *p, uint16_t v) { v = htobe16(v); memcpy(p, &v, 2); }
static inline void put32(uint8_t *p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
static inline void put64(uint8_t *p, uint64_t v) { v = htobe64(v); memcpy(p, &v, 8); }

int64_t clock_ns(void);

/* gate.c */
void gate_set(struct gate *g, enum mode mode);
int gate_enter(struct gate *g, uint32_t generation, int64_t now);
void gate_leave(struct gate *g);
int gate_serves(struct gate *g, int64_t now);

/* layout.c */
enum found { LEFT_TO_PYTHON, PRESENT, ABSENT, TO_ALLOCATE };
enum found layout_find(const struct layout *l, uint64_t offset, uint32_t length, int write,
                       uint64_t *at, uint64_t *block);

/* slots.c */
void slots_limit(int64_t bytes);
int slots_open(struct session *s);
void slots_close(struct session *s);
int slots_can_take(const struct session *s);
int slots_afford(struct session *s, uint32_t length, uint32_t here);
struct slot *slots_take(struct session *s, uint16_t command, uint64_t cookie, uint64_t offset,
                        uint32_t length);
void slots_give_back(struct session *s, struct slot *slot);
void slots_touch(struct session *s, struct slot *slot, uint32_t bytes);
void slots_release(struct session *s);

/* direct_io.c */
int direct_io_open(struct session *s);
void direct_io_close(struct session *s);
void direct_io_queue(struct session *s, struct slot *slot, uint64_t at);
void direct_io_submit(struct session *s);
void direct_io_reap(struct session *s, int least);
void direct_io_drain(struct session *s);
ssize_t direct_io_wait(struct session *s, int may_receive);

/* client.c */
ssize_t client_receive(struct session *s, int flags);
ssize_t client_wait(struct session *s);
void client_reply(struct session *s, struct slot *slot);
int client_send(struct session *s);

/* latency.c */
void latency_begin(struct latency *l, int64_t now);
void latency_end(struct latency *l);

/* session.c */
int session_open(struct session *s);
void session_close(struct session *s);
enum reason session_serve(struct session *s);
enum reason session_drain(struct session *s);
void session_replied(struct session *s);
void session_done(struct session *s, struct slot *slot, int64_t moved);

#endif

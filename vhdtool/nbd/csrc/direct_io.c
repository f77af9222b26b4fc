/* O_DIRECT by the kernel's queue: requests are submitted together and reaped as they end. */
#include "fast_path.h"
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Whether requests go to the queue; without one they are done one by one. */
int direct_io_open(struct session *s)
{
    if (!s->layout.direct || s->no_queue)
        return 0;
    if (s->context)
        return 1;
    s->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->event < 0 || syscall(SYS_io_setup, SLOTS, &s->context) < 0) {
        s->context = 0;
        s->no_queue = 1;
        return 0;
    }
    return 1;
}

void direct_io_close(struct session *s)
{
    if (s->context)
        syscall(SYS_io_destroy, s->context);
    if (s->event >= 0)
        close(s->event);
}

void direct_io_queue(struct session *s, struct slot *slot, uint64_t at)
{
    memset(&slot->block, 0, sizeof slot->block);
    slot->block.aio_data = (uint64_t)(slot - s->slots);
    slot->block.aio_lio_opcode = slot->command == CMD_WRITE ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    slot->block.aio_fildes = (uint32_t)s->layout.fd;
    slot->block.aio_buf = (uint64_t)(uintptr_t)slot->data;
    slot->block.aio_nbytes = slot->length;
    slot->block.aio_offset = (int64_t)at;
    slot->block.aio_flags = IOCB_FLAG_RESFD;
    slot->block.aio_resfd = (uint32_t)s->event;
    s->queued[s->queue++] = (int)(slot - s->slots);
}

void direct_io_submit(struct session *s)
{
    struct iocb *blocks[SLOTS];
    int count = s->queue, from = 0;
    s->lonely = count == 1 && !s->inflight ? s->lonely + 1 : 0;
    for (int n = 0; n < count; n++)
        blocks[n] = &s->slots[s->queued[n]].block;
    s->queue = 0;
    while (from < count) {
        long taken = syscall(SYS_io_submit, s->context, (long)(count - from), blocks + from);
        if (taken < 0 && errno == EINTR)
            continue;
        if (taken <= 0) {
            /* The kernel says so of the first one; the others may be fine. */
            session_done(s, &s->slots[blocks[from]->aio_data], -1);
            from++;
            continue;
        }
        s->inflight += (uint32_t)taken;
        from += (int)taken;
    }
}

/* Takes what has ended; waits until `least` requests have. */
void direct_io_reap(struct session *s, int least)
{
    struct io_event events[SLOTS];
    struct timespec none = {0, 0};
    while (s->inflight) {
        long got = syscall(SYS_io_getevents, s->context, (long)least, (long)SLOTS, events,
                           least ? NULL : &none);
        if (got < 0 && errno == EINTR)
            continue;
        for (long n = 0; n < got; n++)
            session_done(s, &s->slots[events[n].data], (int64_t)events[n].res);
        if (got > 0)
            s->inflight -= (uint32_t)got;
        if (!least || got <= 0 || got >= least)
            return;
        least -= (int)got;
    }
}

void direct_io_drain(struct session *s)
{
    if (s->queue)
        direct_io_submit(s);
    if (s->inflight)
        direct_io_reap(s, (int)s->inflight);
}

/* Until a request in flight has ended or, with `may_receive`, bytes have arrived. */
ssize_t direct_io_wait(struct session *s, int may_receive)
{
    struct pollfd fds[2] = {{s->event, POLLIN, 0}, {s->sock, POLLIN, 0}};
    uint64_t count;
    if (poll(fds, may_receive ? 2 : 1, -1) < 0)
        return -1;
    if (fds[0].revents) {
        if (read(s->event, &count, sizeof count) < 0 && errno != EAGAIN)
            return 0;
        direct_io_reap(s, 0);
    }
    return may_receive && fds[1].revents ? client_receive(s, MSG_DONTWAIT) : -1;
}

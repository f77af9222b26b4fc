/* The types that Python sees; _fast_path.pyi explains them. One shared object serves all CPythons. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include "fast_path.h"

#define NS 1e9

struct state {
    PyTypeObject *gate;
};

typedef struct {
    PyObject_HEAD
    struct gate gate;
} Gate;

typedef struct {
    PyObject_HEAD
    struct session *session; /* NULL when closed */
    PyObject *gate;
    Py_buffer inbox, counters, bat, full;
    /* Outside the session: other threads read it, also after the end. */
    _Atomic int64_t since[2];
    int busy; /* a thread is in it, without Python's lock */
} Session;

static void free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Gate */

static PyObject *gate_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Gate", names))
        return NULL;
    Gate *self = (Gate *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self)
        atomic_store(&self->gate.mode, HOLD);
    return (PyObject *)self;
}

static PyObject *gate_set_method(PyObject *self, PyObject *serves)
{
    int yes = PyObject_IsTrue(serves);
    if (yes < 0)
        return NULL;
    gate_set(&((Gate *)self)->gate, yes ? SERVE : HOLD);
    Py_RETURN_NONE;
}

static PyObject *gate_inside(PyObject *self, PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(atomic_load(&((Gate *)self)->gate.inside));
}

static PyObject *gate_extend(PyObject *self, PyObject *seconds)
{
    double value = PyFloat_AsDouble(seconds);
    if (value == -1 && PyErr_Occurred())
        return NULL;
    atomic_store(&((Gate *)self)->gate.deadline, clock_ns() + (int64_t)(value * NS));
    Py_RETURN_NONE;
}

static PyObject *gate_generation(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(atomic_load(&((Gate *)self)->gate.generation));
}

static PyMethodDef gate_methods[] = {
    {"set", gate_set_method, METH_O, NULL},
    {"inside", gate_inside, METH_NOARGS, NULL},
    {"extend", gate_extend, METH_O, NULL},
    {0},
};
static PyGetSetDef gate_getters[] = {{"generation", gate_generation, NULL, NULL, NULL}, {0}};
static PyType_Slot gate_slots[] = {
    {Py_tp_doc, "A disk's gate, as fast-path requests pass it."},
    {Py_tp_new, gate_new},
    {Py_tp_dealloc, free_object},
    {Py_tp_methods, gate_methods},
    {Py_tp_getset, gate_getters},
    {0},
};
static PyType_Spec gate_spec = {
    .name = "vhdtool.nbd._fast_path.Gate",
    .basicsize = sizeof(Gate),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gate_slots,
};

/* Session */

/* The session, when it is open and no thread is in it; NULL with an exception otherwise. */
static struct session *opened(PyObject *self)
{
    Session *object = (Session *)self;
    if (object->busy)
        PyErr_SetString(PyExc_RuntimeError, "another thread is in this session");
    else if (!object->session)
        PyErr_SetString(PyExc_ValueError, "the session is closed");
    else
        return object->session;
    return NULL;
}

static int parse_bounds(PyObject *bounds, struct latency *latency)
{
    Py_ssize_t count = PySequence_Size(bounds);
    if (count < 0)
        return 0;
    if (count > MOST_BOUNDS) {
        PyErr_Format(PyExc_ValueError, "more than %d bounds of latency buckets", MOST_BOUNDS);
        return 0;
    }
    latency->bounds = (int)count;
    for (Py_ssize_t n = 0; n < count; n++) {
        PyObject *item = PySequence_GetItem(bounds, n);
        double seconds = item ? PyFloat_AsDouble(item) : -1;
        Py_XDECREF(item);
        if (PyErr_Occurred())
            return 0;
        latency->bound[n] = (uint64_t)(seconds * NS);
    }
    return 1;
}

/* Whether a buffer holds so many integers of a size. */
static int require(const Py_buffer *buffer, const char *what, Py_ssize_t itemsize, uint64_t count)
{
    if (buffer->itemsize == itemsize && (uint64_t)(buffer->len / itemsize) >= count)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: too short, or of another type", what);
    return 0;
}

static void release(Session *self)
{
    struct session *s = self->session;
    self->session = NULL;
    if (s) {
        /* The storage may hang, and the kernel takes tens of milliseconds to end a queue. */
        Py_BEGIN_ALLOW_THREADS
        session_close(s);
        Py_END_ALLOW_THREADS
        PyMem_Free(s);
    }
    PyBuffer_Release(&self->inbox);
    PyBuffer_Release(&self->counters);
    PyBuffer_Release(&self->bat);
    PyBuffer_Release(&self->full);
    Py_CLEAR(self->gate);
}

static void session_dealloc(PyObject *self)
{
    release((Session *)self);
    free_object(self);
}

static PyObject *session_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sock", "inbox", "counters", "gate", "structured", "bounds", NULL};
    const struct state *state = PyType_GetModuleState(type);
    int sock, structured;
    PyObject *inbox, *counters, *gate, *bounds;
    if (!state || !PyArg_ParseTupleAndKeywords(args, kwargs, "iOOO!pO:Session", names, &sock, &inbox,
                                               &counters, state->gate, &gate, &structured, &bounds))
        return NULL;
    Session *self = (Session *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self)
        return NULL;
    struct session *s = PyMem_Calloc(1, sizeof *s);
    if (!s) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    if (PyObject_GetBuffer(inbox, &self->inbox, PyBUF_WRITABLE) < 0 ||
        PyObject_GetBuffer(counters, &self->counters, PyBUF_WRITABLE) < 0 ||
        !require(&self->inbox, "inbox", 1, 1) || !require(&self->counters, "counters", 8, 4) ||
        !parse_bounds(bounds, &s->latency))
        goto failed;
    s->sock = sock;
    s->structured = structured;
    s->inbox = self->inbox.buf;
    s->in_size = self->inbox.len > UINT32_MAX ? UINT32_MAX : (uint32_t)self->inbox.len;
    s->counters = self->counters.buf;
    s->since = self->since;
    s->gate = &((Gate *)gate)->gate;
    self->gate = Py_NewRef(gate);
    if (!session_open(s)) {
        PyErr_NoMemory();
        goto failed;
    }
    self->session = s;
    return (PyObject *)self;
failed:
    PyMem_Free(s);
    Py_DECREF(self);
    return NULL;
}

static PyObject *session_use(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "size", "generation", "direct", "writable", "block_bytes",
                            "bitmap_bytes", "bat", "full", "zeros", "whole", NULL};
    struct session *s = opened(self);
    Session *object = (Session *)self;
    struct layout l = {0};
    unsigned long long size, block_bytes;
    PyObject *bat, *full;
    if (!s || !PyArg_ParseTupleAndKeywords(args, kwargs, "iKIppKIOOpp:use", names, &l.fd, &size,
                                           &l.generation, &l.direct, &l.writable, &block_bytes,
                                           &l.bitmap_bytes, &bat, &full, &l.zeros, &l.whole))
        return NULL;
    l.size = size;
    l.block_bytes = block_bytes;
    Py_buffer entries = {0}, flags = {0};
    if (block_bytes) {
        l.blocks = size / block_bytes;
        if (PyObject_GetBuffer(bat, &entries, PyBUF_WRITABLE) < 0 ||
            PyObject_GetBuffer(full, &flags, PyBUF_WRITABLE) < 0 ||
            !require(&entries, "bat", 4, l.blocks) || !require(&flags, "full", 1, l.blocks)) {
            PyBuffer_Release(&entries);
            PyBuffer_Release(&flags);
            return NULL;
        }
        l.bat = entries.buf;
        l.full = flags.buf;
    }
    /* As long as they are exported here, nobody can shrink them. */
    PyBuffer_Release(&object->bat);
    PyBuffer_Release(&object->full);
    object->bat = entries;
    object->full = flags;
    s->layout = l;
    Py_RETURN_NONE;
}

static PyObject *session_serve_method(PyObject *self, PyObject *args)
{
    struct session *s = opened(self);
    unsigned int start, end;
    enum reason why;
    if (!s || !PyArg_ParseTuple(args, "II:serve", &start, &end))
        return NULL;
    if (start > end || end > s->in_size) {
        PyErr_SetString(PyExc_ValueError, "bounds outside of the inbox");
        return NULL;
    }
    s->in_at = start;
    s->in_end = end;
    ((Session *)self)->busy = 1;
    Py_BEGIN_ALLOW_THREADS
    why = session_serve(s);
    Py_END_ALLOW_THREADS
    ((Session *)self)->busy = 0;
    return Py_BuildValue("iII", why, s->in_at, s->in_end);
}

static PyObject *session_drain_method(PyObject *self, PyObject *Py_UNUSED(none))
{
    struct session *s = opened(self);
    enum reason why;
    if (!s)
        return NULL;
    ((Session *)self)->busy = 1;
    Py_BEGIN_ALLOW_THREADS
    why = session_drain(s);
    Py_END_ALLOW_THREADS
    ((Session *)self)->busy = 0;
    return PyLong_FromLong(why);
}

static PyObject *session_failed(PyObject *self, PyObject *Py_UNUSED(none))
{
    struct session *s = opened(self);
    if (!s)
        return NULL;
    if (!s->failures) {
        PyErr_SetString(PyExc_ValueError, "no request failed");
        return NULL;
    }
    const struct slot *slot = &s->slots[s->failed[0]];
    return Py_BuildValue("iKKIN", slot->command, (unsigned long long)slot->cookie,
                         (unsigned long long)slot->offset, slot->length,
                         PyMemoryView_FromMemory((char *)slot->data, slot->length, PyBUF_WRITE));
}

static PyObject *session_replied_method(PyObject *self, PyObject *Py_UNUSED(none))
{
    struct session *s = opened(self);
    if (!s)
        return NULL;
    if (!s->failures) {
        PyErr_SetString(PyExc_ValueError, "no request failed");
        return NULL;
    }
    session_replied(s);
    Py_RETURN_NONE;
}

static PyObject *session_latencies(PyObject *self, PyObject *Py_UNUSED(none))
{
    struct session *s = opened(self);
    if (!s)
        return NULL;
    struct latency *l = &s->latency;
    if (!l->total)
        Py_RETURN_NONE;
    PyObject *counts = PyList_New(l->bounds + 1);
    for (int n = 0; counts && n <= l->bounds; n++) {
        PyObject *count = PyLong_FromUnsignedLongLong(l->counts[n]);
        if (!count || PyList_SetItem(counts, n, count) < 0)
            Py_CLEAR(counts);
    }
    if (!counts)
        return NULL;
    double seconds = (double)l->total / NS;
    l->total = 0;
    memset(l->counts, 0, sizeof l->counts);
    return Py_BuildValue("Nd", counts, seconds);
}

static PyObject *session_close_method(PyObject *self, PyObject *Py_UNUSED(none))
{
    if (!opened(self))
        return NULL;
    release((Session *)self);
    Py_RETURN_NONE;
}

static PyObject *get_since(PyObject *self, void *which)
{
    int64_t since = atomic_load_explicit(&((Session *)self)->since[(intptr_t)which], memory_order_relaxed);
    return PyFloat_FromDouble((double)since / NS);
}

static PyObject *get_in_flight(PyObject *self, void *Py_UNUSED(closure))
{
    const struct session *s = opened(self);
    return s ? PyBool_FromLong(s->inflight > 0) : NULL;
}

static PyObject *get_absent(PyObject *self, void *Py_UNUSED(closure))
{
    const struct session *s = opened(self);
    return s ? PyLong_FromUnsignedLongLong(s->absent) : NULL;
}

static PyMethodDef session_methods[] = {
    {"use", (PyCFunction)(void (*)(void))session_use, METH_VARARGS | METH_KEYWORDS, NULL},
    {"serve", session_serve_method, METH_VARARGS, NULL},
    {"drain", session_drain_method, METH_NOARGS, NULL},
    {"failed_request", session_failed, METH_NOARGS, NULL},
    {"replied", session_replied_method, METH_NOARGS, NULL},
    {"take_latencies", session_latencies, METH_NOARGS, NULL},
    {"close", session_close_method, METH_NOARGS, NULL},
    {0},
};
static PyGetSetDef session_getters[] = {
    {"idle_since", get_since, NULL, NULL, (void *)IDLE_SINCE},
    {"stalled_since", get_since, NULL, NULL, (void *)STALLED_SINCE},
    {"in_flight", get_in_flight, NULL, NULL, NULL},
    {"absent_block", get_absent, NULL, NULL, NULL},
    {0},
};
static PyType_Slot session_slots[] = {
    {Py_tp_doc, "One client's connection in the fast path."},
    {Py_tp_new, session_new},
    {Py_tp_dealloc, session_dealloc},
    {Py_tp_methods, session_methods},
    {Py_tp_getset, session_getters},
    {0},
};
static PyType_Spec session_spec = {
    .name = "vhdtool.nbd._fast_path.Session",
    .basicsize = sizeof(Session),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = session_slots,
};

/* The module */

static PyObject *set_memory_limit(PyObject *Py_UNUSED(module), PyObject *bytes)
{
    long long limit = PyLong_AsLongLong(bytes);
    if (limit == -1 && PyErr_Occurred())
        return NULL;
    slots_limit(limit);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"set_memory_limit", set_memory_limit, METH_O, NULL},
    {0},
};

static int add_type(PyObject *module, PyType_Spec *spec, const char *name, PyTypeObject **keep)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (!type || PyModule_AddObjectRef(module, name, type) < 0) {
        Py_XDECREF(type);
        return -1;
    }
    if (keep)
        *keep = (PyTypeObject *)type;
    else
        Py_DECREF(type);
    return 0;
}

static int execute(PyObject *module)
{
    struct state *state = PyModule_GetState(module);
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"DISCONNECTED", DISCONNECTED}, {"PLAIN_PATH", PLAIN_PATH}, {"RETRY", RETRY},
        {"ALLOCATE", ALLOCATE},         {"LONGEST", LONGEST},
    };
    for (size_t n = 0; n < sizeof constants / sizeof *constants; n++)
        if (PyModule_AddIntConstant(module, constants[n].name, constants[n].value) < 0)
            return -1;
    if (add_type(module, &gate_spec, "Gate", &state->gate) < 0)
        return -1;
    return add_type(module, &session_spec, "Session", NULL);
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    struct state *state = PyModule_GetState(module);
    Py_VISIT(state->gate);
    return 0;
}

static int clear(PyObject *module)
{
    struct state *state = PyModule_GetState(module);
    Py_CLEAR(state->gate);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "vhdtool.nbd._fast_path",
    .m_doc = "Plain reads and writes of NBD clients, served without Python.",
    .m_size = sizeof(struct state),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__fast_path(void);

PyMODINIT_FUNC PyInit__fast_path(void) { return PyModuleDef_Init(&definition); }

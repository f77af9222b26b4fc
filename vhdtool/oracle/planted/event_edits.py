"""Edits of a list of events, with which faults are planted in them."""

from collections.abc import Sequence
from dataclasses import fields, replace

from vhdtool.oracle.evidence.events import Event, Events

_FIELDS = frozenset(field.name for field in fields(Event))
Items = list[Event]


def renumbered(items: Sequence[Event]) -> Events:
    """The events with `seq` from 1, as a complete file has it."""
    return Events(
        tuple(event if event.seq == n else _at(event, n) for n, event in enumerate(items, 1)), ()
    )


def _at(event: Event, seq: int) -> Event:
    """A copy with another seq; `replace` takes three times as long."""
    return Event(
        seq, event.name, event.leg, event.host, event.side, event.pid, event.epoch, event.mono,
        event.extra,
    )  # fmt: skip


def altered(event: Event, **values: object) -> Event:
    """A copy with other values. A name that is not a field of Event is a key of `extra`."""
    own = {key: value for key, value in values.items() if key in _FIELDS}
    rest = {key: value for key, value in values.items() if key not in _FIELDS}
    return replace(event, extra={**event.extra, **rest}, **own)  # type: ignore[arg-type]


def with_free_epochs(event: Event, epoch: int) -> Event:
    """A copy in which all epochs after `epoch` are larger by two."""
    own, ended, extra = event.epoch, event.integer("ended"), event.extra
    if ended is not None and ended > epoch:
        extra = {**extra, "ended": ended + 2}
    if own is not None and own > epoch:
        own += 2
    return replace(event, epoch=own, extra=extra)


def first(items: Items, *names: str) -> Items:
    """The first event with one of the names, or nothing."""
    return [event for event in items if event.name in names][:1]


def last(items: Items, *names: str) -> Items:
    """The last event with one of the names, or nothing."""
    return [event for event in items if event.name in names][-1:]


def without(items: Items, gone: Event) -> Items:
    return [event for event in items if event is not gone]


def after(items: Items, event: Event, added: Event) -> Items:
    """The events with another one after `event`."""
    index = next(n for n, one in enumerate(items) if one is event) + 1
    return [*items[:index], added, *items[index:]]


def swapped(items: Items, old: Event, new: Event) -> Items:
    return [new if event is old else event for event in items]

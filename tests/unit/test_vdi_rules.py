"""The rules of activation: who excludes whom, what delays, and what --force may overrule."""

import pytest

from tests.support.lease_suite import gone_owner
from tests.support.shims import owner
from vhdtool.errors import ActivationRefused
from vhdtool.leases.owner import Owner
from vhdtool.vdi.keys import Key, Keys
from vhdtool.vdi.rules import conflicts, delays, overruled, refusal

ALPHA, BETA = owner("alpha", 11), owner("beta", 22)


def keys(*made: Key) -> Keys:
    return Keys({key.name: key for key in made}, 9)


@pytest.mark.parametrize(
    ("theirs", "ours", "excluded"),
    [("RW", "RW", True), ("RW", "RO", True), ("RO", "RW", True), ("RO", "RO", False)],
)
def test_a_writer_excludes_all_and_a_reader_writers(theirs: str, ours: str, excluded: bool) -> None:
    found = conflicts(keys(Key("host_alpha", 1, ALPHA, theirs)), "host_beta", ours, BETA)
    assert bool(found) == excluded


def test_a_hosts_own_key_does_not_exclude_it() -> None:
    assert conflicts(keys(Key("host_alpha", 1, ALPHA, "RW")), "host_alpha", "RW", ALPHA) == []


def test_another_process_with_this_hosts_name_excludes_it() -> None:
    namesake = keys(Key("host_alpha", 1, owner("alpha", 12), "RO"))
    assert conflicts(namesake, "host_alpha", "RO", ALPHA) == list(namesake.values())


def test_three_keys_delay_an_activation() -> None:
    made = [Key(name, 1, ALPHA) for name in ("activating", "paused", "relinking")]
    assert delays(keys(*made, Key("host_alpha", 1, ALPHA, "RO"))) == made[::-1]


def test_a_refusal_names_the_holder_and_the_number_to_give() -> None:
    text = str(refusal("disk.vhd", Key("host_alpha", 3, ALPHA, "RW")))
    assert text == (
        "disk.vhd: is active (RW) on alpha (pid 11); deactivate it there; "
        "if that host is certainly dead, --force 3"
    )


def test_a_refusal_never_offers_to_force_what_lives_here() -> None:
    assert "--force" not in str(refusal("disk.vhd", Key("paused", 3, Owner.here("alpha")), 30.0))


def test_force_removes_all_keys_of_the_host_it_names() -> None:
    mine = [Key("host_alpha", 3, ALPHA, "RW"), Key("activating", 3, owner("alpha", 12))]
    mine.append(Key("paused", 4, ALPHA))
    every = keys(*mine, Key("host_beta", 5, BETA, "RO"))
    assert overruled("disk.vhd", every, mine, 4) == mine


def test_force_with_another_number_is_refused_with_the_right_one() -> None:
    held = Key("host_alpha", 3, ALPHA, "RW")
    with pytest.raises(ActivationRefused, match=r"--force 3; --force 2 names another key"):
        overruled("disk.vhd", keys(held), [held], 2)


def test_force_against_a_process_that_lives_here_is_refused() -> None:
    held = Key("host_alpha", 3, Owner.here("alpha"), "RW")
    with pytest.raises(ActivationRefused, match="is not dead, its process runs on this machine"):
        overruled("disk.vhd", keys(held), [held], 3)


def test_force_may_name_what_is_proven_gone() -> None:
    held = Key("host_alpha", 3, gone_owner(), "RW")
    assert overruled("disk.vhd", keys(held), [held], 3) == [held]

"""The faults that must have been planted before the pass of an oracle counts, by kind of record.

The kinds are the format of the image, how the last leg ended, and whether the guard was on. A fault
that needs more than every record of a kind has (many blocks, a LUN, a batmap) is not listed; it is
planted if the record allows it.
"""

from vhdtool.oracle.evidence.holdings import KINDS
from vhdtool.oracle.judge import Evidence

Names = dict[str, str]
_ALL: Names = {
    "content": """
        dropped-ack-early dropped-ack-late lowest-sector highest-sector stale-data of-another-run
        of-another-sector of-no-write foreign-data never-written disk-other readback-counts
        error-counts missing-counts torn-counts readback-bad readback-bad-count readback-early
        readback-missing readback-short readback-twice io-error kernel-io-error unknown-host
        output-elsewhere unlisted-log unlisted-panic seed-other started-twice never-started
        never-stopped stopped-twice ack-late ack-gone last-ack-gone garbled stamped-early
        stamped-early-elsewhere
        """,
    "metadata": """
        entry-gone entry-moved header-block_bytes header-bat_offset header-max_entries header-gone
        no-image-yet point-torn image-unreadable other-image-file_size other-image-bat
        other-image-header image-entry-gone image-block-untold block-missing block-untold
        size-short 1-destination-opened-early 1-destination-opened-gone point-undue
        allocated-twice allocation-missing
        """,
    "structure": "overlap entry-past-end",
    "activation": """
        second-activation-first second-activation-last epoch-untold one-epoch-missing epoch-twice
        epoch-falls epoch-order released-at-its-read release-gone leg-broken leg-direction
        leg-number leg-number-early side-swapped controller-attaches controller-clock
        never-detached no-process allocated-detached allocated-elsewhere opened-again
        activated-again unpaused-open shim-clock read_mono-later began_mono-later
        last_metadata_mono-later first-request-twice first-write-twice no-first-request
        no-first-write unknown-read served-after-release lease-missing open-with-lease
        ended-nothing ended-other nothing-started no-source fenced size-other events-torn
        command-STRATEGY command-SEED command-GUARD guard-flipped direction-unknown
        """,
    "leftovers": " ".join(
        (*(f"{kind}-after" for kind in KINDS), "blind-leg-1", "holdings-missing")
    ),
    "coverage": "few-acks unended leg-missing leg-too-many untried-1",
}
_MORE: dict[str, Names] = {
    "vhd": {
        "content": "blocks-other",
        "metadata": """
            bit-gone swapped-footer footer-uuid footer-current_size footer-type footer-gone
            footer-late other-image-footer other-image-bitmaps image-block-moved sector-other
            """,
        "structure": """
            foreign-footer footer-gone footer-copy-gone header-torn entry-on-metadata
            """,
    },
    "qcow2": {
        "structure": """
            entry-odd copied-flag refcount-zero refcounts-dirty table-place qemu-img-corruptions
            qemu-img-failed another-image-checked unchecked
            """,
    },
    "moved": {
        "content": "output-at-source output-at-destination",
        "metadata": "1-source-quiesced-early 1-source-quiesced-gone 1-source-closed-gone",
        "activation": "leg-twice suspended-elsewhere no-destination kept-out-shared",
        "coverage": """
            few-blocks-before few-blocks-after never-suspended never-resumed no-sides
            """,
    },
    "cancelled": {
        "activation": "cancel-without-reason",
        "coverage": """
            refusal-gone refused-by-source refused-as-source refused-after-the-end
            refused-before-the-leg refused-after-resumed source-did-nothing
            refused-and-first-request refused-and-first-write refused-and-allocated
            """,
    },
    "guarded": {"activation": "no-lease lease-not-taken no-lease-at-all"},
}


def required_faults(evidence: Evidence) -> dict[str, tuple[str, ...]]:
    """Oracle -> names of the faults that a record of this kind must allow."""
    case, legs = evidence.record.case, evidence.legs
    kinds = [_ALL, _MORE.get(evidence.image_format, {})]
    kinds.append(_MORE["moved" if legs and legs[-1].moved else "cancelled"])
    if case is not None and case.guard:
        kinds.append(_MORE["guarded"])
    return {
        oracle: tuple(name for kind in kinds for name in kind.get(oracle, "").split())
        for oracle in _ALL
    }

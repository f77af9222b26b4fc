"""Drawings of a case: the migration to scale, and each blackout.

blackout    The blackout of each leg placed on the time axis: last
            acknowledgement, phases, first after
diagram     The mail's diagram of a case: the whole migration to scale, and a
            zoom onto each blackout
primitives  What a drawing is made of, and the scale that puts times on its x
            axis
rows        Rows that both drawings share: the two hosts' VDI.attached and
            VDI.active bars
timeline    Events of a case -> the bars of the mail's diagram: who had the disk
            attached, who was active
"""

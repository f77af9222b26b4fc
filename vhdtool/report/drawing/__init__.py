"""The diagram of a case as plain shapes, which a template renders as SVG.

diagram     the migration to scale, and an enlargement of each blackout
rows        rows that both drawings have, and the time axis
blackout    the blackout of each leg on the time axis, and its phases
timeline    the bars and marks of the diagram, derived from the events of a case
strips      strip plots of a soak: margin over seeds, blackout by phase
paint       colours and lines of the shapes, as a style sheet and as attributes
primitives  bars, labels, lines and polygons, and the scale of the time axis
"""

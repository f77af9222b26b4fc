"""Changes of closed images: size, chain, metadata, repairs.

batmap_fields  What blktap keeps in the batmap's header besides the map: a
               marker, and the hash of a key
capacity       Does it fit? Decided before the first byte is written: half a
               change helps nobody
coalesce       A child's data into its parent, or a whole chain into its base
modify         Changing what an image says about itself: its parent, hidden,
               uuid, time stamp
relocate       Moving blocks within an image. At every moment the BAT points
               to whole blocks
repair         Mends what can be mended without touching guest data: footers,
               sizes, batmap, leaked tail
resize         Another virtual size: growing, and shrinking with proof that
               nothing is cut
"""

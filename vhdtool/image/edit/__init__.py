"""Changes of closed images: size, chain, metadata and repairs.

batmap_fields  The marker and the key hash that blktap stores in the batmap's
               header
capacity       Whether a change fits on the storage, decided before the first
               write
coalesce       Copying a child's data into its parent, or a chain into its base
modify         Changing metadata: parent, hidden flag, uuid and time stamp
rebuild_header Rebuilding a lost header from what the rest of the image proves
relocate       Moving blocks within an image
repair         Repairing metadata without touching guest data: footers, sizes,
               batmap, leaked tail
resize         Changing the virtual size; shrinking requires that the data cut
               off is zero
"""

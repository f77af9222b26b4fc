"""New images: empty, differencing, or converted from another.

convert       From one form into another: a chain or raw disk becomes a
              dynamic, fixed or raw image
differencing  Differencing images: a child that keeps only what differs from
              its parent
empty         New images. The order on disk is blktap's: footer copy, header,
              BAT, batmap, locators, footer
"""

"""New images: empty, differencing, or converted from another image.

convert       Conversion of a chain or raw disk to a dynamic, fixed or raw image
differencing  Creating differencing images, and the parent fields of their
              headers
empty         Creating empty images. The order of writes is blktap's: footer
              copy, header, BAT, batmap, locators, footer
"""

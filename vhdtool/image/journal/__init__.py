"""Changes that happen wholly or not at all: a journal beside the image, whole new files.

new_file     New files that appear under their name only when they are whole
transaction  Changes of several sectors that count as one: an undo journal
             beside the image guards them
undo         The undo journal: what stood where a repair writes, so that it can
             be taken back
"""

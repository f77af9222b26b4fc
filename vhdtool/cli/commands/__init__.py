"""The commands of `vhdtool`, one module each.

A module and its function have the name of their command; `main.py` finds them by it. The folder
is longer than others: a reader who knows a command knows its file.

Images:      info check meta diff map read scan
             create snapshot convert resize coalesce fill modify repair damage
Serving:     serve tap
Migrations:  lab judge report hosts guest bundle
The shell:   completion
"""

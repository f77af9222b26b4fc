"""A lab host: the connection to it, the agent that runs there, and the shim as seen from here.

agent         The lab's resident process on a host: `python3 -m
              vhdtool.lab.hosts.agent`, over an SSH channel
agent_held    What a host holds of a case, taken at one moment: locks,
              processes, devices, files and more
agent_images  What the agent does with images: makes them, looks at them,
              sends them home
bundle        The part of the package that hosts run, as one zip file that
              depends on nothing but Python
channel       A command on a host over the user's own `ssh`: bytes in, bytes
              out, and why it ended
connection    A lab host as the controller sees it: one SSH connection, one
              agent, replies and streams
shim          The shim as the controller drives it: operations in, events out
"""

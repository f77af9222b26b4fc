"""A lab host: the connection to it, the agent that runs there, and the shim as seen from here.

agent           The lab's resident process on a host: operations over an SSH
                channel
agent_files     What the agent does with files, and short commands
agent_holdings  What a host holds of a case at one moment: locks, processes,
                devices, files and more
agent_images    What the agent does with images: creates them, reads their
                metadata, sends them
agent_vdi       XCP's VDI operations on a host, with the shim that the runner
                has started there
bundle          The part of the package that hosts run, as one zip file that
                depends on nothing but Python
channel         A command on a host over the user's own `ssh`: bytes in, bytes
                out, and the reason of its end
connection      A lab host as the controller sees it: one SSH connection, one
                agent, replies and streams
shim            A shim on a host, as the controller drives it: operations in,
                events out
vdi_shim        A shim that the controller drives by VDI operations on its host
xen_stream      The stream of `xl migrate` over TCP: a receiver, and the relay
                that holds the guest back
"""

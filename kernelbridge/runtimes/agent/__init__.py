"""The bridge's side of the agent, the first process of every sandbox; the same for every runtime.

AgentClient          starts programs in one sandbox, finds them again and ends them  (client)
  AgentDirectory     where the agent's socket is                                     (directory)
  AgentLink          packets and descriptors on that socket                          (link)
    messages         what is said on it                                              (pure)
  AgentProcess       one program: its output, its terminal, its end                  (process)

`kernelbridge/guest/agent.py` is the other side.
"""

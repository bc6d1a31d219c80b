"""The bridge's side of the agent, the first process of every sandbox; the same for every runtime.

AgentSandbox         a sandbox: all but how it is made, limited and destroyed     (sandbox)
└── AgentClient      starts programs, finds them again, pauses and ends them      (client)
    ├── AgentLink    packets and descriptors on the agent's socket                (link)
    │   └── messages what is sent on it                                           (pure)
    ├── AgentProcess one program: its output, its terminal, its end               (process)
    └── AgentTerminal a terminal that the bridge holds                            (terminal)
AgentDirectory       where the agent's socket is                                  (directory)

`kernelbridge/guest/agent.py` is the other side.
"""

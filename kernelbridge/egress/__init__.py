"""The only way out of a sandbox: an HTTP proxy in the server, with a list of allowed hosts.

    program in the sandbox ──▶ 127.0.0.1:3128, where the agent accepts ──▶ the connection itself, passed to the server
    SessionProxy (proxy.py)    reads what the program wants    http_request.py, client_hello.py
                               decides                         policy.py, hosts.py
                               connects                        dialling.py
                               copies both ways                tunnel.py, meter.py, allowance.py, shares.py
                               or ends TLS, adds a secret      exchange.py, inner_request.py, tls.py, authority.py

Whose connection it is follows from the socket on which the agent passes it, and from nothing that it contains.
"""

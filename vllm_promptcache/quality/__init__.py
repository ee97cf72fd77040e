"""What reuse does to answers: it is measured, summed up in a profile, and servers are held to that.

Servers use `profile`, `load_profile`, `gate` and `first_token`, which import nothing of a server.
`evaluate` and `calibrate` are commands that run engines; nothing of a server imports them.
"""
